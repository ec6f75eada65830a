-- A part of a namespace in key order. KEYS: the order, what this server is. ARGV: its mark, what stands before the key in a
-- record's name, the first and last key in the way of ZRANGE, 'REV' or '', most rows looked at, most live rows, most bytes that
-- count towards the page, most bytes of documents, '1' where documents do not count, the time, '' = now.
--
-- The time; then key and row of each that is looked at, '' for a dead one. Nothing where the server is not the one it was.
if (redis.call('HGET', KEYS[2], 'mark') or '') ~= ARGV[1] then return {} end
local now = tonumber(ARGV[11])
if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local lives_max, bytes_max, load_max = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local keys
if ARGV[5] == 'REV' then
    keys = redis.call('ZRANGE', KEYS[1], ARGV[3], ARGV[4], 'BYLEX', 'REV', 'LIMIT', 0, ARGV[6])
else
    keys = redis.call('ZRANGE', KEYS[1], ARGV[3], ARGV[4], 'BYLEX', 'LIMIT', 0, ARGV[6])
end
local told, lives, bytes, load = {now}, 0, 0, 0
for at, key in ipairs(keys) do
    local row = redis.pcall('GET', ARGV[2] .. key)
    if type(row) == 'table' then row = 'E' .. row.err end
    row = row or ''
    if string.sub(row, 1, 1) == '1' then
        local expires = tonumber(string.sub(row, 41, 55))
        -- One that is damaged is told as it is.
        if string.sub(row, 2, 2) == 't' or (expires and expires ~= 0 and expires <= now) then row = '' end
    end
    told[2 * at], told[2 * at + 1] = key, row
    if row ~= '' then
        lives, load = lives + 1, load + #row
        bytes = bytes + #key
        if ARGV[10] ~= '1' then bytes = bytes + #row end
        if lives >= lives_max or bytes >= bytes_max or load >= load_max then break end
    end
end
return told
