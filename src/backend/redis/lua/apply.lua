-- Rows that carry their versions: a newer one replaces what stands there, and no operation is forgotten by it.
--
-- KEYS: slots, then for each row its record and its order. ARGV: the time at which nothing is written any more, then for each
-- the row. A word for each: applied 'A', superseded 'S', an operation that took effect before 'K', below the floor 'B', not the
-- slot's owner 'N', too late 'L', or an error.
local late = now >= tonumber(ARGV[1])

-- Both rings as one, that of the newer version first.
local function merged(newer, older)
    local ring, evicted = ring_of(newer), math.max(evicted_of(newer), evicted_of(older))
    local rest = ring_of(older)
    for at = 1, #rest, ENTRY do
        if not find(ring, sub(rest, at, at + 15)) then ring = ring .. sub(rest, at, at + ENTRY - 1) end
    end
    if #ring > RING_MAX then ring, evicted = sub(ring, 1, RING_MAX), now end
    return ring, evicted
end

local function rewritten(full, ring, evicted)
    return row(sub(full, 2, 2), sub(full, 3, 3), sub(full, 5, 8), version_of(full), tonumber(sub(full, 41, 55)),
        evicted, ring, sub(full, HEAD + #ring_of(full) + 1))
end

-- Whether the operation that a newer row is of had taken effect before: its own is the one that got its version.
local function is_known(head, entry)
    local print, ring = fingerprint(version_of(entry)), ring_of(entry)
    for at = 1, #ring, ENTRY do
        if sub(ring, at + 16, at + 31) == print then
            return find(ring_of(head), sub(ring, at, at + 15)) ~= nil
        end
    end
    return false
end

local function apply(record, order, entry)
    local floor = floor_of(sub(entry, 5, 8))
    if not floor then return 'N' end
    if late then return 'L' end
    local head, wrong = head_of(record)
    if not head then return 'E' .. wrong end
    if head == '' then
        if sub(entry, 9, 24) <= floor then return 'B' end
        if full then return 'E' .. NO_ROOM end
        wrong = keep_order(order, record, '', sub(entry, 2, 2))
        if wrong then return 'E' .. wrong end
        redis.call('SET', record, entry)
        return 'A'
    end
    local ring, evicted
    if version_of(head) < version_of(entry) then
        if is_known(head, entry) then return 'K' end
        ring, evicted = merged(entry, head)
        wrong = keep_order(order, record, sub(head, 2, 2), sub(entry, 2, 2))
        if wrong then return 'E' .. wrong end
        redis.call('SET', record, rewritten(entry, ring, evicted))
        return 'A'
    end
    if version_of(head) == version_of(entry) then
        ring, evicted = merged(entry, head)
    else
        ring, evicted = merged(head, entry)
    end
    if ring ~= ring_of(head) or evicted ~= evicted_of(head) then
        redis.call('SET', record, rewritten(redis.call('GET', record), ring, evicted))
    end
    return 'S'
end

return each(function(at) return apply(KEYS[2 * at], KEYS[2 * at + 1], ARGV[at + 1]) end)
