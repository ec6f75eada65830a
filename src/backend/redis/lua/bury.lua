-- What is dead: an expired record becomes a tombstone of the same version, an old tombstone goes and raises the floor of its slot.
--
-- KEYS: slots, then for each row its record and its order. ARGV: how long tombstones are kept, and how long after its end a
-- record is expired. How many expired, how many were removed and how many are damaged and left alone, and of one of these the
-- name and what is wrong.
local grace, delay = tonumber(ARGV[1]), tonumber(ARGV[2])
local kept_from = format('%012x0000', math.max(now - grace, 0))
local expired, removed, damaged, name, why = 0, 0, 0, '', ''

local function bury(record, order)
    local head, wrong = head_of(record)
    if not head then return wrong end
    if head == '' then return end
    local slot = sub(head, 5, 8)
    local floor = floor_of(slot)
    if not floor then return end
    if sub(head, 2, 2) == 't' then
        if sub(head, 9, 24) > kept_from then return end
        if kept_from > floor then redis.call('HSET', KEYS[1], slot, '1' .. kept_from) end
        redis.call('DEL', record)
        removed = removed + 1
        return
    end
    local expires = tonumber(sub(head, 41, 55))
    if expires == 0 or expires > now - delay then return end
    wrong = keep_order(order, record, 'r', 't')
    if wrong then return wrong end
    redis.call('SET', record, row('t', sub(head, 3, 3), slot, version_of(head), 0, evicted_of(head), ring_of(head), ''))
    expired = expired + 1
end

for at = 1, (#KEYS - 1) / 2 do
    -- One that is damaged must not keep the others from being buried.
    local done, wrong = pcall(bury, KEYS[2 * at], KEYS[2 * at + 1])
    if not done then wrong = type(wrong) == 'table' and wrong.err or wrong end
    if wrong then damaged, name, why = damaged + 1, KEYS[2 * at], wrong end
end
return {expired, removed, damaged, name, why}
