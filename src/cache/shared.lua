#!lua name=ds1

-- The steps of the shared tier. Each is atomic, so a copy is readable only while no writer of its key is at work.
--
-- KEYS: 1 the copy, 2 the lease, 3 the writers (a sorted set: token by the end of its statement, milliseconds).
-- A copy: format '1', kind, 32 digits of version, 16 digits of as-of (microseconds of this server), then bytes that are
-- not looked at here. Versions are compared as text.

local function micros()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- Forgets writers whose statements cannot land any more; how many are left, and whether they met: the mark '!'.
local function writers(key, now)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now / 1000)
  local left, mark = redis.call('ZCARD', key), false
  if left > 0 and redis.call('ZSCORE', key, '!') then
    left, mark = left - 1, true
    if left == 0 then
      redis.call('DEL', key)
    end
  end
  return left, mark
end

local function version(copy)
  return string.sub(copy, 3, 34)
end

-- ARGV: token, how old a copy may be (microseconds), how long the lease holds (milliseconds).
-- The right to fill, unless there is a copy young enough, a writer, or another who has the right.
local function lease(KEYS, ARGV)
  local now = micros()
  if writers(KEYS[3], now) > 0 then
    return { 'busy', now }
  end
  local copy = redis.call('GET', KEYS[1])
  if copy and now - tonumber(string.sub(copy, 35, 50)) <= tonumber(ARGV[2]) then
    return { 'hit', now, copy }
  end
  if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[3]) then
    return { 'lease', now }
  end
  return { 'wait', now }
end

-- ARGV: token, how long to keep (milliseconds), copy ('' = give the right back).
local function fill(KEYS, ARGV)
  if redis.call('GET', KEYS[2]) ~= ARGV[1] then
    return 0
  end
  redis.call('DEL', KEYS[2])
  if ARGV[3] == '' or writers(KEYS[3], micros()) > 0 then
    return 0
  end
  local there = redis.call('GET', KEYS[1])
  if there and version(there) > version(ARGV[3]) then
    return 0
  end
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
  return 1
end

-- ARGV: token, how long the statement may take (milliseconds), whether contention is remembered.
-- A writer is at work from here on: what is there goes, and what others fetch is not kept.
local function wbegin(KEYS, ARGV)
  local now = micros()
  local others = writers(KEYS[3], now)
  redis.call('DEL', KEYS[1], KEYS[2])
  if ARGV[1] ~= '' then
    local life = tonumber(ARGV[2])
    redis.call('ZADD', KEYS[3], string.format('%.0f', now / 1000 + life), ARGV[1])
    if others > 0 and ARGV[3] == '1' then
      redis.call('ZADD', KEYS[3], '+inf', '!')
    end
    -- Only ever further: another writer may take longer.
    if redis.call('PTTL', KEYS[3]) < life then
      redis.call('PEXPIRE', KEYS[3], life)
    end
  end
  return now
end

-- ARGV: token, how long to keep (milliseconds), copy ('' = none), whether something was written.
-- The copy stays only if no other writer was at work beside this one.
local function wend(KEYS, ARGV)
  local mine = redis.call('ZREM', KEYS[3], ARGV[1])
  local left, contended = writers(KEYS[3], micros())
  if mine == 0 and ARGV[1] ~= '' then
    -- The mark was gone, so somebody may have filled in what this write has replaced.
    if ARGV[4] == '1' then
      redis.call('DEL', KEYS[1], KEYS[2])
    end
    return 0
  end
  if ARGV[3] == '' or left > 0 or contended then
    return 0
  end
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
  return 1
end

-- ARGV: version ('' = whatever it is). Takes away a copy that its writer could not.
local function evict(KEYS, ARGV)
  redis.call('DEL', KEYS[2])
  local there = redis.call('GET', KEYS[1])
  if there and (ARGV[1] == '' or version(there) < ARGV[1]) then
    return redis.call('DEL', KEYS[1])
  end
  return 0
end

redis.register_function('ds1_lease', lease)
redis.register_function('ds1_fill', fill)
redis.register_function('ds1_wbegin', wbegin)
redis.register_function('ds1_wend', wend)
redis.register_function('ds1_evict', evict)
