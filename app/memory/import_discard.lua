-- Removes what an unfinished import has received. One that has become a memory stays as it is.
-- KEYS: import, staging log, imports   ARGV: import id
if redis.call('HEXISTS', KEYS[1], 'memory') == 1 then return end
redis.call('UNLINK', KEYS[1], KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[1])
