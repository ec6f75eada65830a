-- Rows as they stand. KEYS: slots, then the records. ARGV: after how many bytes of rows no more are told, then the slot of each.
-- The time, then for each that is told what is noted of its slot and its row; false where there is none.
local time = redis.call('TIME')
local told = {time[1] * 1000 + math.floor(time[2] / 1000)}
local slots = redis.call('HMGET', KEYS[1], unpack(ARGV, 2))
local bytes, bytes_max = 0, tonumber(ARGV[1])
for at = 2, #KEYS do
    local row = redis.pcall('GET', KEYS[at])
    if type(row) == 'table' then row = 'E' .. row.err end
    told[2 * at - 2] = slots[at - 1]
    told[2 * at - 1] = row
    if row then bytes = bytes + #row end
    if bytes >= bytes_max then break end
end
return told
