#!lua name=ds8q

-- How the pending overlay forgets: what is settled, and what a store has overtaken. It is told what is pending by plain commands.
--
-- KEYS, three for each write: what is pending on its key (notes behind one another, each beginning with its version), its receipt, the
-- namespace's index of keys that have something pending. Versions are compared as text.
-- ARGV: how long receipts are kept (seconds), and for how long it is known of what waits and is noted no more; for each write its version,
-- what became of it ('' = nothing to note), and whether all that is older goes as well ('1').

local VERSION, ORIGIN, NOTE = 32, 16, 65

-- The kind of a note whose document is in its worker's place, 's'.
local PLACED = 115

-- Values of one call: what fits the stack.
local TOGETHER = 1000

-- `notes`: all get receipts; else those alone that have one, or whose pending write makes room for it. What is taken away before its
-- fate is known goes to the others of its key that wait unseen.
local function settle(KEYS, ARGV, notes)
  local seconds, waiting_seconds, receipts, settled = ARGV[1], ARGV[2], {}, {}
  for at = 1, #KEYS / 3 do
    receipts[at] = KEYS[3 * at - 1]
    settled[receipts[at]] = ARGV[3 * at + 1] ~= ''
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
      local goes = function(noted) return noted == version or (older == '1' and noted < version) end
      -- Of each worker's place the newest that had its document there: with it go the others.
      local newest = {}
      for from = 1, #there, NOTE do
        if string.byte(there, from + VERSION) == PLACED then
          local noted = string.sub(there, from, from + VERSION - 1)
          local origin = string.sub(noted, -ORIGIN)
          if not newest[origin] or newest[origin] < noted then
            newest[origin] = noted
          end
        end
      end
      for origin, noted in pairs(newest) do
        if goes(noted) then
          documents[#documents + 1] = of_key .. origin .. 's'
        else
          newest[origin] = nil
        end
      end
      local kept = {}
      for from = 1, #there, NOTE do
        local noted = string.sub(there, from, from + VERSION - 1)
        local placed = string.byte(there, from + VERSION) == PLACED
        if noted == version then
          -- Told of below.
        elseif goes(noted) or (placed and newest[string.sub(noted, -ORIGIN)]) then
          if not settled[of_key .. noted] then
            unseen[#unseen + 1] = noted
          end
          if not placed then
            documents[#documents + 1] = of_key .. noted .. 'b'
          end
        else
          kept[#kept + 1] = string.sub(there, from, from + NOTE - 1)
        end
      end
      left = table.concat(kept)
      if left == '' then
        redis.call('DEL', waits)
      elseif #left < #there then
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

-- Lists keys that have something pending. KEYS, two for each: what is pending on it, and the index. ARGV: the keys.
local function list(KEYS, ARGV)
  for at = 1, #ARGV do
    if redis.call('EXISTS', KEYS[2 * at - 1]) == 1 then
      redis.call('ZADD', KEYS[2 * at], 0, ARGV[at])
    end
  end
  return #ARGV
end

redis.register_function('ds8q_list', list)
redis.register_function('ds8q_settle', function(KEYS, ARGV) return settle(KEYS, ARGV, true) end)
-- Where memory is full: it gives back more than it takes, and nothing else ever would.
redis.register_function{
  function_name = 'ds8q_forget',
  callback = function(KEYS, ARGV) return settle(KEYS, ARGV, false) end,
  flags = { 'allow-oom' },
}
