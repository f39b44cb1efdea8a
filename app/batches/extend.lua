-- Extends a lease, or ends it where the time is 0, if it is still held under the token.
-- KEYS: lease   ARGV: token, lease_ms   Returns 1, or 0 where somebody else may hold it.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
