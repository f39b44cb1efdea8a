-- Enters new events of the outbox among what a webhook is to be told, and takes what is due. What was taken is due again
-- after a while, in case that its taker dies.
-- KEYS: webhooks, outbox, cursors, due, waiting, attempts
-- ARGV: webhook id, now_ms, time before which events are too old, most, when what is taken is due again, ttl_ms
-- Returns {number dropped: too old or no longer in the outbox, number waiting, time of the oldest or '',
--   {id, attempts, type, subject, at_ms, metadata, trace}, ...}.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return {0, 0, ''} end
local dropped = 0
local function drop(id)
  redis.call('ZREM', KEYS[4], id)
  redis.call('ZREM', KEYS[5], id)
  redis.call('HDEL', KEYS[6], id)
  dropped = dropped + 1
end
local function read(entry)
  local found = {}
  for index = 1, #entry[2], 2 do found[entry[2][index]] = entry[2][index + 1] end
  return found
end

local cursor = redis.call('HGET', KEYS[3], ARGV[1]) or '0-0'
local new = redis.call('XRANGE', KEYS[2], '(' .. cursor, '+', 'COUNT', 1000)
for _, entry in ipairs(new) do
  redis.call('ZADD', KEYS[4], ARGV[2], entry[1])
  redis.call('ZADD', KEYS[5], tonumber(read(entry)['at_ms']) or ARGV[2], entry[1])
end
if #new > 0 then redis.call('HSET', KEYS[3], ARGV[1], new[#new][1]) end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', '(' .. ARGV[3], 'LIMIT', 0, 1000)) do drop(id) end

local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', ARGV[2], 'LIMIT', 0, ARGV[4])) do
  local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
  if entry then
    local found = read(entry)
    redis.call('ZADD', KEYS[4], ARGV[5], id)
    taken[#taken + 1] = {id, redis.call('HGET', KEYS[6], id) or '0', found['type'] or '', found['id'] or '',
      found['at_ms'] or '', found['metadata'] or '', found['trace'] or ''}
  else
    drop(id)
  end
end
if #new > 0 or #taken > 0 then
  for index = 4, 6 do redis.call('PEXPIRE', KEYS[index], ARGV[6]) end
end
local oldest = redis.call('ZRANGE', KEYS[5], 0, 0, 'WITHSCORES')[2]
return {dropped, redis.call('ZCARD', KEYS[5]), oldest or '', unpack(taken)}
