-- Keeps a value beside a batch, for whoever holds it. KEYS: lease, value   ARGV: token, value, ttl_ms
-- Returns 1, or 0 where the lease is lost.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
