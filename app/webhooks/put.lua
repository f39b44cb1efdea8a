-- Writes a webhook's record in place of the one that was read, if that is still there. One that begins anew, disabled or
-- enabled, loses what waited for it, and is told what happens from now on.
-- KEYS: webhooks, cursors, outbox, due, waiting, attempts   ARGV: id, record before, record, '1' where it begins anew
-- Returns 1, 0 where the webhook is gone, or -1 where the record is another one by now. The same call again does no harm.
local found = redis.call('HGET', KEYS[1], ARGV[1])
if not found then return 0 end
if found ~= ARGV[2] and found ~= ARGV[3] then return -1 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
if ARGV[4] == '1' then
  local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
  redis.call('HSET', KEYS[2], ARGV[1], last and last[1] or '0-0')
  redis.call('DEL', KEYS[4], KEYS[5], KEYS[6])
end
return 1
