-- Takes a tenant off the list of those that forgot something, unless it did so again meanwhile.
-- KEYS: forgetting   ARGV: tenant, its score as it was read
if redis.call('ZSCORE', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('ZREM', KEYS[1], ARGV[1]) end
return 0
