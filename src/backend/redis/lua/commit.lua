-- Rows that were decided on what was read, all or none.
--
-- KEYS: slots, then for each row its record and its order. ARGV: the time at which nothing is written any more, then for each
-- row what it was decided on (slot, what was noted of the slot, version or dashes, whether it was live, when an operation was
-- last pushed out and those that are remembered) and the row as it is to stand, '' = as it is. A word.
if now >= tonumber(ARGV[1]) then return 'L' end
local count = (#KEYS - 1) / 2
local kinds = {}
for at = 1, count do
    local seen = ARGV[2 * at]
    local floor = floor_of(sub(seen, 1, 4))
    if not floor then return 'N' end
    local head, wrong = head_of(KEYS[2 * at])
    if not head then return 'E' .. wrong end
    local version, live, ring = string.rep('-', 32), '0', string.rep('0', 15)
    if head ~= '' then
        version, live = version_of(head), is_live(head) and '1' or '0'
        -- A merged row that was superseded leaves its operations alone, under the version that stands.
        ring = sub(head, 56, 70) .. ring_of(head)
    end
    if '1' .. floor .. version .. live .. ring ~= sub(seen, 5) then return 'X' end
    if full and head == '' and ARGV[2 * at + 1] ~= '' then return 'E' .. NO_ROOM end
    kinds[at] = sub(head, 2, 2)
end
for at = 1, count do
    local row = ARGV[2 * at + 1]
    if row ~= '' then
        -- All are of one namespace, so of one order: the first finds out whether it can be changed.
        local wrong = keep_order(KEYS[2 * at + 1], KEYS[2 * at], kinds[at], sub(row, 2, 2))
        if wrong then return 'E' .. wrong end
    end
end
for at = 1, count do
    if ARGV[2 * at + 1] ~= '' then redis.call('SET', KEYS[2 * at], ARGV[2 * at + 1]) end
end
return 'A'
