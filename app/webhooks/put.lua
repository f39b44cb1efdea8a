-- Writes a webhook's record anew, disabled or enabled, if it is still there. What waited for it goes, and it is told what
-- happens from now on.
-- KEYS: webhooks, cursors, outbox, due, waiting, attempts   ARGV: id, record   Returns 1, or 0 where it is gone.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
redis.call('HSET', KEYS[2], ARGV[1], last and last[1] or '0-0')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('DEL', KEYS[4], KEYS[5], KEYS[6])
return 1
