#!lua name=ds6q

-- How the pending overlay forgets: what is settled, and what a store has overtaken. It is told what is pending by plain commands.
--
-- KEYS, three for each write: what is pending on its key (a hash by version), its receipt, the namespace's index of keys that have
-- something pending. Versions are compared as text.
-- ARGV: how long receipts are kept (seconds), and those of what waits; for each write its version, what became of it ('' = nothing to note), and whether all
-- that is older goes as well ('1').

local VERSION = 32

-- Values of one DEL: what fits the stack.
local TOGETHER = 1000

-- The receipt of a version beside that of another of the same key; the name of its document has a letter more.
local function receipt_of(receipt, version)
  return string.sub(receipt, 1, -VERSION - 1) .. version
end

-- `notes`: all get receipts; else those alone that have one, or whose pending write makes room for it. What is taken away before its
-- fate is known has a receipt that says that it waits.
local function settle(KEYS, ARGV, notes)
  local seconds, waiting_seconds, receipts = ARGV[1], ARGV[2], {}
  for at = 2, #KEYS, 3 do
    receipts[#receipts + 1] = KEYS[at]
  end
  local was = redis.call('MGET', unpack(receipts))
  local documents, unlisted = {}, {}
  for at = 1, #receipts do
    local waits, receipt, index = KEYS[3 * at - 2], receipts[at], KEYS[3 * at]
    local version, fate, older = ARGV[3 * at], ARGV[3 * at + 1], ARGV[3 * at + 2]
    documents[#documents + 1] = receipt .. 'b'
    local gone = redis.call('HDEL', waits, version)
    if fate == '' then
      if gone > 0 then
        redis.call('SET', receipt, 'pending', 'NX', 'EX', waiting_seconds)
      end
    -- What is settled stays so: a message that is delivered again finds its own write, or a newer one. The dead may rise.
    elseif (notes or was[at] or gone > 0) and was[at] ~= 'applied' and was[at] ~= 'superseded' then
      redis.call('SET', receipt, fate, 'EX', seconds)
    end
    if older == '1' then
      for _, other in ipairs(redis.call('HKEYS', waits)) do
        if other < version then
          redis.call('HDEL', waits, other)
          local its = receipt_of(receipt, other)
          redis.call('SET', its, 'pending', 'NX', 'EX', waiting_seconds)
          documents[#documents + 1] = its .. 'b'
        end
      end
    end
    -- The name of what is pending begins with that of the index, but for a letter.
    if redis.call('EXISTS', waits) == 0 then
      local keys = unlisted[index] or {}
      unlisted[index] = keys
      keys[#keys + 1] = string.sub(waits, #index + 2)
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

redis.register_function('ds6q_settle', function(KEYS, ARGV) return settle(KEYS, ARGV, true) end)
-- Where memory is full: it gives back more than it takes, and nothing else ever would.
redis.register_function{
  function_name = 'ds6q_forget',
  callback = function(KEYS, ARGV) return settle(KEYS, ARGV, false) end,
  flags = { 'allow-oom' },
}
