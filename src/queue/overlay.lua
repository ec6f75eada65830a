#!lua name=ds1q

-- The steps of the pending overlay: the newest queued write of each key, until it is settled.
--
-- KEYS: 1 the pending write, 2 the namespace's index of keys that have one, 3 the receipt.
-- A pending write: '1', kind, 32 digits of version, number of operations, 48 digits for each (operation, version), then
-- bytes that are not looked at here. Versions are compared as text.

local HEAD, OP, OPS_MAX = 34, 48, 4

local function version(pending)
  return string.sub(pending, 3, HEAD)
end

local function split(pending)
  local count = tonumber(string.sub(pending, HEAD + 1, HEAD + 1))
  local ends = HEAD + 1 + count * OP
  return string.sub(pending, 1, HEAD), string.sub(pending, HEAD + 2, ends), string.sub(pending, ends + 1)
end

-- The operations of both, those of the first before those of the second, each once, and no more than are kept.
local function ring(first, second)
  local seen, ops = {}, {}
  local all = first .. second
  for at = 1, #all, OP do
    local op = string.sub(all, at, at + 15)
    if not seen[op] and #ops < OPS_MAX then
      seen[op] = true
      ops[#ops + 1] = string.sub(all, at, at + OP - 1)
    end
  end
  return tostring(#ops) .. table.concat(ops)
end

-- ARGV: head, operation ('' = none), tail, key, how long the receipt is kept (seconds).
-- 1: it is the pending write now. 0: a newer one is. 2: it has been settled already.
local function hold(KEYS, ARGV)
  local kept = redis.call('SET', KEYS[3], 'pending', 'NX', 'EX', ARGV[5])
  if not kept and redis.call('GET', KEYS[3]) ~= 'pending' then
    return 2
  end
  local there = redis.call('GET', KEYS[1])
  if not there then
    redis.call('SET', KEYS[1], ARGV[1] .. ring(ARGV[2], '') .. ARGV[3])
    redis.call('ZADD', KEYS[2], 0, ARGV[4])
    return 1
  end
  local head, ops, tail = split(there)
  if version(there) >= version(ARGV[1]) then
    redis.call('SET', KEYS[1], head .. ring(ops, ARGV[2]) .. tail)
    return 0
  end
  redis.call('SET', KEYS[1], ARGV[1] .. ring(ARGV[2], ops) .. ARGV[3])
  return 1
end

-- ARGV: version up to which the pending write is done, key, what became of it ('' = nothing to note), how long the
-- receipt is kept (seconds). Whether the pending write is gone by it.
local function settle(KEYS, ARGV)
  if ARGV[3] ~= '' then
    redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[4])
  end
  local there = redis.call('GET', KEYS[1])
  if there and version(there) <= ARGV[1] then
    redis.call('DEL', KEYS[1])
    redis.call('ZREM', KEYS[2], ARGV[2])
    return 1
  end
  return 0
end

redis.register_function('ds1q_hold', hold)
redis.register_function('ds1q_settle', settle)
