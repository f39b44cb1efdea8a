-- Writes a webhook's record, which is told what happens from now on, unless the tenant has too many. The same again
-- changes nothing.
-- KEYS: webhooks, cursors, outbox   ARGV: id, record, most   Returns 1, or 0 where there are too many.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 1 end
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
redis.call('HSET', KEYS[2], ARGV[1], last and last[1] or '0-0')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
