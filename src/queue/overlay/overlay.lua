#!lua name=ds2q

-- The steps of the pending overlay: the newest queued write of each key, until it is settled.
--
-- KEYS, three for each write: the pending write, the namespace's index of keys that have one, the receipt. Many writes share a
-- call: what is around a call costs more than what is in it.
-- A pending write: '1', kind, 32 digits of version, number of operations, 48 digits for each (operation, version), then
-- bytes that are not looked at here. Versions are compared as text.

local HEAD, OP, OPS_MAX = 34, 48, 4
-- All but the tail, which may be long: Lua reads each string that it is given from end to end.
local MARKS = HEAD + 1 + OPS_MAX * OP

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

-- 1: it is the pending write now. 0: a newer one is. 2: it has been settled already.
local function hold_one(pending, index, receipt, seconds, head, op, tail, key)
  local kept = redis.call('SET', receipt, 'pending', 'NX', 'EX', seconds)
  if not kept and redis.call('GET', receipt) ~= 'pending' then
    return 2
  end
  local there = redis.call('GETRANGE', pending, 0, MARKS - 1)
  if there == '' then
    redis.call('SET', pending, head .. ring(op, ''))
    redis.call('APPEND', pending, tail)
    redis.call('ZADD', index, 0, key)
    return 1
  end
  if version(there) >= version(head) then
    local its_head, ops, its_tail = split(redis.call('GET', pending))
    redis.call('SET', pending, its_head .. ring(ops, op) .. its_tail)
    return 0
  end
  local _, ops = split(there)
  redis.call('SET', pending, head .. ring(op, ops))
  redis.call('APPEND', pending, tail)
  return 1
end

-- ARGV: how long receipts are kept (seconds); for each write its head, operation ('' = none), tail and key.
local function hold(KEYS, ARGV)
  local held = {}
  for at = 1, #KEYS / 3 do
    local k, a = 3 * at - 2, 4 * at - 2
    held[at] = hold_one(KEYS[k], KEYS[k + 1], KEYS[k + 2], ARGV[1], ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3])
  end
  return held
end

-- ARGV: how long receipts are kept (seconds); for each write the version up to which it is done, its key, and what became of
-- it ('' = nothing to note). How many pending writes are gone by it.
local function settle(KEYS, ARGV)
  local gone = 0
  for at = 1, #KEYS / 3 do
    local k, a = 3 * at - 2, 3 * at - 1
    if ARGV[a + 2] ~= '' then
      -- What is settled stays so: a message that is delivered again finds its own write, or a newer one. The dead may rise.
      local was = redis.call('GET', KEYS[k + 2])
      if was ~= 'applied' and was ~= 'superseded' then
        redis.call('SET', KEYS[k + 2], ARGV[a + 2], 'EX', ARGV[1])
      end
    end
    local there = redis.call('GETRANGE', KEYS[k], 0, HEAD - 1)
    if there ~= '' and version(there) <= ARGV[a] then
      redis.call('DEL', KEYS[k])
      redis.call('ZREM', KEYS[k + 1], ARGV[a + 1])
      gone = gone + 1
    end
  end
  return gone
end

redis.register_function('ds2q_hold', hold)
redis.register_function('ds2q_settle', settle)
