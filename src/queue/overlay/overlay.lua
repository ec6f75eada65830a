#!lua name=ds8r

-- How the pending overlay forgets: what is settled, and what a store has overtaken. It is told what is pending by plain commands.
--
-- KEYS, three for each write: what is pending on its key (notes behind one another, each beginning with its version), its receipt, the
-- namespace's index of keys that have something pending; behind all of them the epoch. Versions are compared as text.
-- ARGV: how long receipts are kept (seconds), and for how long it is known of what waits and is noted no more; for each write its version,
-- what became of it ('' = nothing to note), and whether all that is older goes as well ('1').

local VERSION, TIME, NOTE = 32, 16, 65
-- Kinds of notes: with a document of its own ('r'), with one in its worker's place ('s').
local OWN, PLACED = 114, 115

-- Values of one call: what fits the stack.
local TOGETHER = 1000

-- Whether a noted write is the newest whose document is in its worker's place: then those before it there have none.
local function fills_place(there, version, origin)
  local sub, byte = string.sub, string.byte
  local is_there = false
  for from = 1, #there - NOTE + 1, NOTE do
    local noted = sub(there, from, from + VERSION - 1)
    if byte(there, from + VERSION) == PLACED and sub(noted, TIME + 1) == origin then
      if noted > version then
        return false
      end
      is_there = is_there or noted == version
    end
  end
  return is_there
end

-- Takes a version out of what is noted, and all that is older as well if so. What its document took the place of has none any more: that
-- stays noted, as a write that waits and cannot be read. Gives back what stays, puts the versions of the others that go into `out`, and
-- the names of documents that nobody needs any more into `documents`.
local function cut(there, version, older, of_key, out, documents)
  local sub, byte = string.sub, string.byte
  local origin = sub(version, TIME + 1)
  local empties = not older and fills_place(there, version, origin)
  local left, goes_from, stays_in, count = {}, {}, {}, #out
  for from = 1, #there - NOTE + 1, NOTE do
    local noted, kind = sub(there, from, from + VERSION - 1), byte(there, from + VERSION)
    if noted == version or (older and noted < version) then
      if noted ~= version then
        count = count + 1
        out[count] = noted
      end
      if kind == PLACED then
        goes_from[sub(noted, TIME + 1)] = true
      elseif kind == OWN and noted ~= version then
        documents[#documents + 1] = of_key .. noted .. 'b'
      end
    elseif empties and kind == PLACED and sub(noted, TIME + 1) == origin then
      left[#left + 1] = noted .. 'g' .. sub(there, from + VERSION + 1, from + NOTE - 1)
    else
      left[#left + 1] = sub(there, from, from + NOTE - 1)
      if kind == PLACED then
        stays_in[sub(noted, TIME + 1)] = true
      end
    end
  end
  for by in pairs(goes_from) do
    if not stays_in[by] then
      documents[#documents + 1] = of_key .. by .. 's'
    end
  end
  return table.concat(left)
end

-- An epoch that was not there begins at the time, in microseconds: there are never so many settled that one that Redis forgot had come
-- so far.
local function begin(epoch)
  local now = redis.call('TIME')
  redis.call('SET', epoch, string.format('%d%06d', now[1], now[2]))
end

-- `notes`: all get receipts; else those alone that have one, or whose pending write makes room for it. What is taken away before its
-- fate is known goes to the others of its key that wait unseen.
local function settle(KEYS, ARGV, notes)
  local seconds, waiting_seconds, receipts, settled = ARGV[1], ARGV[2], {}, {}
  for at = 1, (#KEYS - 1) / 3 do
    receipts[at] = KEYS[3 * at - 1]
    if ARGV[3 * at + 1] ~= '' then
      settled[receipts[at]] = true
    end
  end
  -- Whoever notes a write knows by it that nothing was settled since. First: what fails behind it is not undone.
  local epoch = KEYS[#KEYS]
  local settles = next(settled) ~= nil
  if settles and redis.call('INCR', epoch) == 1 then
    begin(epoch)
  end
  local was = redis.call('MGET', unpack(receipts))
  local documents, unlisted = {}, {}
  for at = 1, #receipts do
    local waits, receipt, index = KEYS[3 * at - 2], receipts[at], KEYS[3 * at]
    local version, fate, older = ARGV[3 * at], ARGV[3 * at + 1], ARGV[3 * at + 2]
    -- Names of the same key: its receipts but for their versions, those that wait unseen; a document has a letter more than its receipt.
    local of_key = string.sub(receipt, 1, -VERSION - 1)
    local unseen_name, unseen = of_key .. 'o', {}
    documents[#documents + 1] = receipt .. 'b'
    local there = redis.call('GET', waits) or ''
    local gone, left = string.find(there, version, 1, true) ~= nil, there
    if gone or (older == '1' and there ~= '') then
      local out = {}
      left = cut(there, version, older == '1', of_key, out, documents)
      for _, noted in ipairs(out) do
        if not (settles and settled[of_key .. noted]) then
          unseen[#unseen + 1] = noted
        end
      end
      if left == '' then
        redis.call('DEL', waits)
      elseif left ~= there then
        redis.call('SET', waits, left)
      end
    end
    if left == '' then
      -- The name of what is pending begins with that of the index, but for a letter.
      local keys = unlisted[index] or {}
      unlisted[index] = keys
      keys[#keys + 1] = string.sub(waits, #index + 2)
    end
    if fate == '' then
      if was[at] then
        redis.call('SREM', unseen_name, version)
      elseif gone then
        unseen[#unseen + 1] = version
      end
    else
      local waited = redis.call('SREM', unseen_name, version) == 1
      -- What is settled stays so: a message that is delivered again finds its own write, or a newer one. The dead may rise.
      if (notes or was[at] or gone or waited) and was[at] ~= 'applied' and was[at] ~= 'superseded' then
        redis.call('SET', receipt, fate, 'EX', seconds)
      end
    end
    for from = 1, #unseen, TOGETHER do
      redis.call('SADD', unseen_name, unpack(unseen, from, math.min(from + TOGETHER - 1, #unseen)))
    end
    if #unseen > 0 then
      redis.call('EXPIRE', unseen_name, waiting_seconds)
    end
  end
  for index, keys in pairs(unlisted) do
    redis.call('ZREM', index, unpack(keys))
  end
  for at = 1, #documents, TOGETHER do
    redis.call('DEL', unpack(documents, at, math.min(at + TOGETHER - 1, #documents)))
  end
  return #receipts
end

-- Pushes out what is noted first of a key: KEYS, two for each: what is pending on it, the versions that wait unseen; ARGV: for how long
-- it is known of these (seconds), and for each the bytes that go, the first version of them and the last. They are as they were while both
-- are where they were: new ones come behind, and whatever goes moves those behind it. (The same one, noted once more, could come to lie
-- there; but not both, with as many between them that are others.) No document goes with them.
local function push_out(KEYS, ARGV)
  local sub, seconds, pushed_out = string.sub, ARGV[1], 0
  for at = 1, #KEYS / 2 do
    local waits, unseen = KEYS[2 * at - 1], KEYS[2 * at]
    local bytes, first, last = tonumber(ARGV[3 * at - 1]), ARGV[3 * at], ARGV[3 * at + 1]
    local there = redis.call('GET', waits) or ''
    local is_as_it_was = sub(there, 1, VERSION) == first and sub(there, bytes - NOTE + 1, bytes - NOTE + VERSION) == last
    -- Where it is not, or nothing would stay, it is left to the next write.
    if is_as_it_was and #there > bytes then
      local out, count = {}, 0
      for from = 1, bytes, NOTE do
        count = count + 1
        out[count] = sub(there, from, from + VERSION - 1)
      end
      redis.call('SET', waits, sub(there, bytes + 1))
      for from = 1, count, TOGETHER do
        redis.call('SADD', unseen, unpack(out, from, math.min(from + TOGETHER - 1, count)))
      end
      redis.call('EXPIRE', unseen, seconds)
      pushed_out = pushed_out + 1
    end
  end
  return pushed_out
end

redis.register_function('ds8r_settle', function(KEYS, ARGV) return settle(KEYS, ARGV, true) end)
-- Where memory is full: it gives back more than it takes, and nothing else ever would.
redis.register_function{
  function_name = 'ds8r_forget',
  callback = function(KEYS, ARGV) return settle(KEYS, ARGV, false) end,
  flags = { 'allow-oom' },
}
-- Where memory is full as well: it comes behind what is noted, which had room, and would be taken for not noted.
redis.register_function{ function_name = 'ds8r_push_out', callback = push_out, flags = { 'allow-oom' } }
redis.register_function{
  function_name = 'ds8r_begin',
  callback = function(KEYS)
    if redis.call('EXISTS', KEYS[1]) == 0 then
      begin(KEYS[1])
    end
    return 1
  end,
  flags = { 'allow-oom' },
}
