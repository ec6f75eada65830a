-- What every script that writes begins with. Numbers of 64 bits are lower-case hex digits of one width, which compare as
-- strings and survive; a Lua number would lose their last bits. Times are milliseconds, which fit. The layout of a row is
-- told in rows.rs.
local HEAD, HEAD_MAX, ENTRY, RING_MAX = 70, 198, 32, 128
local NO_OP, ZERO = '0000000000000000', '0000000000000000'
-- While the server is `full`, a tombstone may take the place of what is there, and nothing may be added.
local NO_ROOM = 'OOM a tombstone where no row is takes memory'
local sub, format = string.sub, string.format
-- Format, kind, was, entries, slot; version; two times.
local SHAPE = '^1[rt][01][0-4]%d%d%d%d' .. string.rep('%x', 32) .. string.rep('%d', 30)

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The floor of a slot, or nil where this server does not own it.
local function floor_of(slot)
    local state = redis.call('HGET', KEYS[1], slot)
    if state and sub(state, 1, 1) == '1' then return sub(state, 2, 17) end
end

-- The head of a row, or '' where there is none, or nil and what is wrong.
local function head_of(record)
    local head = redis.pcall('GETRANGE', record, 0, HEAD_MAX - 1)
    if type(head) == 'table' then return nil, head.err end
    if head == '' then return head end
    local ring_end = string.find(head, SHAPE) and HEAD + ENTRY * tonumber(sub(head, 4, 4))
    if not ring_end or #head < ring_end or string.find(sub(head, HEAD + 1, ring_end), '%X') then
        return nil, 'CORRUPT it is no row of this format'
    end
    return head
end

local function is_live(head)
    if sub(head, 2, 2) ~= 'r' then return false end
    local expires = tonumber(sub(head, 41, 55))
    return expires == 0 or expires > now
end

local function version_of(head) return sub(head, 9, 40) end
local function evicted_of(head) return tonumber(sub(head, 56, 70)) end
local function ring_of(head) return sub(head, HEAD + 1, HEAD + ENTRY * tonumber(sub(head, 4, 4))) end

local function row(kind, was, slot, version, expires, evicted, ring, body)
    return format('1%s%s%d%s%s%015d%015d', kind, was, #ring / ENTRY, slot, version, expires, evicted) .. ring .. body
end

-- hlc xor origin.
local function fingerprint(version)
    local function half(at)
        local hlc, origin = tonumber(sub(version, at, at + 7), 16), tonumber(sub(version, at + 16, at + 23), 16)
        return bit.tohex(bit.bxor(hlc, origin))
    end
    return half(1) .. half(9)
end

-- Where in a ring an operation is.
local function find(ring, op)
    for at = 1, #ring, ENTRY do
        if sub(ring, at, at + 15) == op then return at end
    end
end

-- The order holds the keys of rows that are no tombstones. Gives what is wrong, before anything is changed.
local function keep_order(order, record, was_kind, kind)
    if was_kind == kind or (was_kind == '' and kind == 't') then return end
    -- Behind `ds1/o/<namespace>` and `ds1/r/<namespace>/` stands the key.
    local key = sub(record, #order + 2)
    local done
    if kind == 'r' then done = redis.pcall('ZADD', order, 0, key) else done = redis.pcall('ZREM', order, key) end
    if type(done) == 'table' then return done.err end
end

-- The words of a function for each of the rows; one that fails at damage fails alone.
local function each(decide)
    local words = {}
    for at = 1, (#KEYS - 1) / 2 do
        local done, word = pcall(decide, at)
        if not done then word = 'ECORRUPT ' .. (type(word) == 'table' and word.err or word) end
        words[at] = word
    end
    return words
end
