#!lua name=ds5q

-- The steps of the pending overlay: the newest queued write of each key, until it is settled.
--
-- KEYS, three for each write: the pending write, the receipt, the namespace's index of keys that have one. Many writes share a call, and
-- what can be asked or set for many at once is: what is around a command costs more than what is in it. Documents do not come
-- here: they are set before, each under its own version, and taken away here.
-- A pending write: '3', kind, 32 digits of version, number of operations, 48 digits for each (operation, version), 16 of its
-- life. Versions are compared as text.

local HEAD, OP, OPS_MAX, VERSION = 34, 48, 4, 32

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

-- The document beside a receipt; `letter`: where their names differ.
local function document(receipt, letter)
  return string.sub(receipt, 1, letter - 1) .. 'b' .. string.sub(receipt, letter + 1)
end

-- The receipt of another version of the same key.
local function receipt_of(receipt, other)
  return string.sub(receipt, 1, -VERSION - 1) .. other
end

-- Adds a key to the list of an index, whose name but for a letter is what its pending writes' names begin with.
local function list(lists, index, pending)
  local keys = lists[index]
  if not keys then
    keys = {}
    lists[index] = keys
  end
  keys[#keys + 1] = string.sub(pending, #index + 2)
end

local function every_third(KEYS, first)
  local some = {}
  for at = first, #KEYS, 3 do
    some[#some + 1] = KEYS[at]
  end
  return some
end

-- ARGV: how long receipts are kept (seconds), where the names of receipts and documents differ; the pending write of each. A write
-- that is pending under its own name needs no receipt: it gets one when a newer one takes its place, or when it is settled.
local function hold(KEYS, ARGV)
  local seconds, letter = ARGV[1], tonumber(ARGV[2])
  local pending, receipts = every_third(KEYS, 1), every_third(KEYS, 2)
  local there, was = redis.call('MGET', unpack(pending)), redis.call('MGET', unpack(receipts))
  local now, indexed, unwanted = {}, {}, {}
  for at = 1, #pending do
    local new, name, receipt = ARGV[at + 2], pending[at], receipts[at]
    local old = now[name] or there[at]
    if was[at] and was[at] ~= 'pending' then
      -- It has been settled already.
      unwanted[#unwanted + 1] = document(receipt, letter)
    elseif not old then
      now[name] = new
      list(indexed, KEYS[3 * at], name)
    else
      local old_version, new_version = version(old), version(new)
      if old_version < new_version then
        local other = receipt_of(receipt, old_version)
        redis.call('SET', other, 'pending', 'NX', 'EX', seconds)
        unwanted[#unwanted + 1] = document(other, letter)
        local head, op, life = split(new)
        local _, ops = split(old)
        now[name] = head .. ring(op, ops) .. life
      elseif old_version > new_version then
        redis.call('SET', receipt, 'pending', 'NX', 'EX', seconds)
        unwanted[#unwanted + 1] = document(receipt, letter)
        local head, ops, life = split(old)
        local _, op = split(new)
        now[name] = head .. ring(ops, op) .. life
      end
    end
  end
  local set = {}
  for name, value in pairs(now) do
    set[#set + 1] = name
    set[#set + 1] = value
  end
  if #set > 0 then
    redis.call('MSET', unpack(set))
  end
  for index, keys in pairs(indexed) do
    local members = {}
    for at = 1, #keys do
      members[2 * at - 1], members[2 * at] = 0, keys[at]
    end
    redis.call('ZADD', index, unpack(members))
  end
  if #unwanted > 0 then
    redis.call('DEL', unpack(unwanted))
  end
  return #pending
end

-- ARGV: how long receipts are kept (seconds), where the names of receipts and documents differ; for each write the version up to which
-- it is done, and what became of it ('' = nothing to note). `notes`: all get receipts; else those alone that have one, or whose pending
-- write makes room for it.
local function settle(KEYS, ARGV, notes)
  local seconds, letter = ARGV[1], tonumber(ARGV[2])
  local pending, receipts = every_third(KEYS, 1), every_third(KEYS, 2)
  local there, was = redis.call('MGET', unpack(pending)), redis.call('MGET', unpack(receipts))
  local gone, forgotten, unlisted = {}, {}, {}
  for at = 1, #pending do
    local name, receipt, done, fate = pending[at], receipts[at], ARGV[2 * at + 1], ARGV[2 * at + 2]
    -- What is settled stays so: a message that is delivered again finds its own write, or a newer one. The dead may rise.
    local makes_room = there[at] and not gone[name] and version(there[at]) == done
    if fate ~= '' and (notes or was[at] or makes_room) and was[at] ~= 'applied' and was[at] ~= 'superseded' then
      redis.call('SET', receipt, fate, 'EX', seconds)
    end
    forgotten[#forgotten + 1] = document(receipt, letter)
    if there[at] and not gone[name] and version(there[at]) <= done then
      gone[name] = true
      forgotten[#forgotten + 1] = name
      if version(there[at]) < done then
        forgotten[#forgotten + 1] = document(receipt_of(receipt, version(there[at])), letter)
      end
      list(unlisted, KEYS[3 * at], name)
    end
  end
  redis.call('DEL', unpack(forgotten))
  for index, keys in pairs(unlisted) do
    redis.call('ZREM', index, unpack(keys))
  end
  return #pending
end

redis.register_function('ds5q_hold', hold)
redis.register_function('ds5q_settle', function(KEYS, ARGV) return settle(KEYS, ARGV, true) end)
-- Where memory is full: it gives back more than it takes, and nothing else ever would.
redis.register_function{
  function_name = 'ds5q_forget',
  callback = function(KEYS, ARGV) return settle(KEYS, ARGV, false) end,
  flags = { 'allow-oom' },
}
