-- Sets fields of a batch, for whoever holds it. KEYS: batch, lease   ARGV: token, then fields and values
-- Returns 1, or 0 where the lease is lost or the batch gone with its tenant, whose record must not come back in part.
if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('HEXISTS', KEYS[1], 'batch') == 0 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return 1
