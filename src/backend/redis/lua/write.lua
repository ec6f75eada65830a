-- Puts and deletes, each by itself: backend/decide.rs, for one key after the other.
--
-- KEYS: slots, then for each write its record and its order. ARGV: the time at which nothing is written any more, then for each
-- write its parameters (scripts.rs says where each stands) and its document. A word for each write.
local late = now >= tonumber(ARGV[1])
local cap = format('%012x0000', now + 250)

local function after(hlc)
    local low = tonumber(sub(hlc, 9, 16), 16) + 1
    if low < 4294967296 then return sub(hlc, 1, 8) .. format('%08x', low) end
    return format('%08x00000000', tonumber(sub(hlc, 1, 8), 16) + 1)
end

-- The mark of a reading that the store changed: bit 62.
local function raised(origin)
    local top = tonumber(sub(origin, 1, 1), 16)
    if top % 8 < 4 then top = top + 4 end
    return format('%x', top) .. sub(origin, 2)
end

local function may_be_forgotten(head, floor, lookback)
    local first = now - lookback
    if head ~= '' then
        local evicted = evicted_of(head)
        return evicted ~= 0 and evicted >= first
    end
    return floor ~= ZERO and tonumber(sub(floor, 1, 12), 16) >= first
end

local function write(record, order, asked, body)
    local slot, hlc, origin, kind = sub(asked, 1, 4), sub(asked, 5, 20), sub(asked, 21, 36), sub(asked, 37, 37)
    local floor = floor_of(slot)
    if not floor then return 'N' end
    if late then return 'L' end
    local head, wrong = head_of(record)
    local retried, wants, keeps = sub(asked, 70, 70) == '1', sub(asked, 86, 86), sub(asked, 53, 53) == '1'
    local was_kind = sub(head or '', 2, 2)
    if not head then
        -- What needs nothing of a damaged row mends it.
        if sub(wrong, 1, 7) ~= 'CORRUPT' or retried or keeps or wants ~= '0' then return 'E' .. wrong end
        head, was_kind = '', '?'
    end

    local there = head ~= ''
    local version, ring, evicted, live = '', '', 0, false
    if there then
        version, ring, evicted, live = version_of(head), ring_of(head), evicted_of(head), is_live(head)
    end
    local op = sub(asked, 54, 69)
    if op ~= NO_OP then
        local known = find(ring, op)
        if known then
            local same = sub(ring, known + 16, known + 31) == fingerprint(version)
            return same and 'D' .. sub(head, 3, 3) .. version or 'D'
        end
        if retried and may_be_forgotten(head, floor, tonumber(sub(asked, 71, 85))) then return 'F' end
    end
    local holds = wants == '0' or (wants == '1' and not live) or (wants == '2' and live)
        or (wants == '3' and live and version == sub(asked, 87, 118))
    if not holds then return live and 'C' .. version or 'C' end

    local expires = tonumber(sub(asked, 38, 52))
    if live and keeps then expires = tonumber(sub(head, 41, 55)) end
    local above = floor
    if there and sub(version, 1, 16) > above then above = sub(version, 1, 16) end
    above = after(above)
    local got = hlc
    if got > cap then got = cap end
    if got < above then got = above end
    if sub(asked, 119, 119) == '1' and got ~= hlc then return 'S' end
    version = got .. (got == hlc and origin or raised(origin))
    if op ~= NO_OP then
        if #ring >= RING_MAX then ring, evicted = sub(ring, 1, RING_MAX - ENTRY), now end
        ring = op .. fingerprint(version) .. ring
    end
    if full and was_kind == '' then return 'E' .. NO_ROOM end
    wrong = keep_order(order, record, was_kind, kind)
    if wrong then return 'E' .. wrong end
    local was = live and '1' or '0'
    redis.call('SET', record, row(kind, was, slot, version, expires, evicted, ring, body))
    return 'A' .. was .. version .. format('%015d', expires)
end

return each(function(at) return write(KEYS[2 * at], KEYS[2 * at + 1], ARGV[2 * at], ARGV[2 * at + 1]) end)
