-- Forgets a tenant without webhooks, unless it may be making one.
-- KEYS: tenants   ARGV: tenant, time before which it must have made its last one
local made_at_ms = redis.call('ZSCORE', KEYS[1], ARGV[1])
if made_at_ms and tonumber(made_at_ms) < tonumber(ARGV[2]) then redis.call('ZREM', KEYS[1], ARGV[1]) end
return 1
