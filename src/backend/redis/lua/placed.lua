-- What a server is and which slots it owns: name, plan and mark, or false for each, and a byte for each of as many slots as ARGV
-- says, '1' = its own. KEYS: what it is, its slots.
local is = redis.call('HMGET', KEYS[1], 'name', 'plan', 'mark')
local owned = {}
for slot = 0, tonumber(ARGV[1]) - 1 do
    local state = redis.call('HGET', KEYS[2], string.format('%04d', slot))
    owned[slot + 1] = state and string.sub(state, 1, 1) or '0'
end
return {is[1], is[2], is[3], table.concat(owned)}
