#!lua name=ds4q

-- The steps of the pending overlay: the newest queued write of each key, until it is settled.
--
-- KEYS, four for each write: the pending write, its document, the namespace's index of keys that have one, the receipt. Many writes
-- share a call, and what can be asked or set for many at once is: what is around a command costs more than what is in it.
-- A pending write: '2', kind, 32 digits of version, number of operations, 48 digits for each (operation, version), 16 of its
-- life. Versions are compared as text.

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
  if first == '' then
    return (#second / OP) .. second
  end
  -- One that is not among the others, as is nearly always so. (It may seem to be where digits of two others lie together.)
  if #first == OP and not string.find(second, string.sub(first, 1, 16), 1, true) then
    local older = math.min(#second / OP, OPS_MAX - 1)
    return (older + 1) .. first .. string.sub(second, 1, older * OP)
  end
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

-- Adds values to the list of a name.
local function add(lists, name, one, other)
  local list = lists[name]
  if not list then
    list = {}
    lists[name] = list
  end
  list[#list + 1] = one
  if other then
    list[#list + 1] = other
  end
end

local function every_fourth(KEYS, first)
  local some = {}
  for at = first, #KEYS, 4 do
    some[#some + 1] = KEYS[at]
  end
  return some
end

-- ARGV: how long receipts are kept (seconds); for each write its head, operation ('' = none), life, document and key.
-- Of each: 1: it is the pending write now. 0: a newer one is. 2: it has been settled already.
local function hold(KEYS, ARGV)
  local pending = every_fourth(KEYS, 1)
  local there = redis.call('MGET', unpack(pending))
  local now, documents, indexed, held = {}, {}, {}, {}
  for at = 1, #pending do
    local k, a = 4 * at - 3, 5 * at - 3
    local head, op, life, name = ARGV[a], ARGV[a + 1], ARGV[a + 2], pending[at]
    local kept = redis.call('SET', KEYS[k + 3], 'pending', 'NX', 'EX', ARGV[1])
    local old = now[name] or there[at]
    if not kept and redis.call('GET', KEYS[k + 3]) ~= 'pending' then
      held[at] = 2
    elseif not old then
      now[name], documents[KEYS[k + 1]], held[at] = head .. ring(op, '') .. life, ARGV[a + 3], 1
      add(indexed, KEYS[k + 2], 0, ARGV[a + 4])
    elseif version(old) >= version(head) then
      local its_head, ops, its_life = split(old)
      now[name], held[at] = its_head .. ring(ops, op) .. its_life, 0
    else
      local _, ops = split(old)
      now[name], documents[KEYS[k + 1]], held[at] = head .. ring(op, ops) .. life, ARGV[a + 3], 1
    end
  end
  local set = {}
  for name, value in pairs(now) do
    set[#set + 1] = name
    set[#set + 1] = value
  end
  for name, value in pairs(documents) do
    set[#set + 1] = name
    set[#set + 1] = value
  end
  if #set > 0 then
    redis.call('MSET', unpack(set))
  end
  for index, keys in pairs(indexed) do
    redis.call('ZADD', index, unpack(keys))
  end
  return held
end

-- ARGV: how long receipts are kept (seconds); for each write the version up to which it is done, its key, and what became of
-- it ('' = nothing to note). How many pending writes are gone by it. `notes`: receipts of writes that have none are made, too.
local function settle(KEYS, ARGV, notes)
  local pending, receipts = every_fourth(KEYS, 1), every_fourth(KEYS, 4)
  local there, was = redis.call('MGET', unpack(pending)), redis.call('MGET', unpack(receipts))
  local gone, forgotten, unlisted = {}, {}, {}
  for at = 1, #pending do
    local k, a = 4 * at - 3, 3 * at - 1
    -- What is settled stays so: a message that is delivered again finds its own write, or a newer one. The dead may rise.
    if ARGV[a + 2] ~= '' and (notes or was[at]) and was[at] ~= 'applied' and was[at] ~= 'superseded' then
      redis.call('SET', receipts[at], ARGV[a + 2], 'EX', ARGV[1])
    end
    if there[at] and not gone[pending[at]] and version(there[at]) <= ARGV[a] then
      gone[pending[at]] = true
      forgotten[#forgotten + 1] = pending[at]
      forgotten[#forgotten + 1] = KEYS[k + 1]
      add(unlisted, KEYS[k + 2], ARGV[a + 1])
    end
  end
  if #forgotten > 0 then
    redis.call('DEL', unpack(forgotten))
  end
  for index, keys in pairs(unlisted) do
    redis.call('ZREM', index, unpack(keys))
  end
  return #forgotten / 2
end

redis.register_function('ds4q_hold', hold)
redis.register_function('ds4q_settle', function(KEYS, ARGV) return settle(KEYS, ARGV, true) end)
-- Where memory is full: it gives back more than it takes, and nothing else ever would.
redis.register_function{
  function_name = 'ds4q_forget',
  callback = function(KEYS, ARGV) return settle(KEYS, ARGV, false) end,
  flags = { 'allow-oom' },
}
