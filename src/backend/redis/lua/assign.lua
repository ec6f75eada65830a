-- Gives a server its part of the slots, once. KEYS: what it is, its slots. ARGV: its name, the whole plan, its mark, its first
-- slot and the one behind its last. What it is already is left as it is: 'A' where that is the same, else 'X'.
local name = redis.call('HGET', KEYS[1], 'name')
if name then
    return name == ARGV[1] and redis.call('HGET', KEYS[1], 'plan') == ARGV[2] and 'A' or 'X'
end
for slot = tonumber(ARGV[4]), tonumber(ARGV[5]) - 1 do
    redis.call('HSET', KEYS[2], string.format('%04d', slot), '1' .. string.rep('0', 16))
end
redis.call('HSET', KEYS[1], 'name', ARGV[1], 'plan', ARGV[2], 'mark', ARGV[3])
return 'A'
