-- Takes or extends a tenant's lease, and drops events that are too old.
-- KEYS: lease, webhooks, outbox   ARGV: token, lease_ms, lowest id kept
-- Returns the records of its webhooks, or nil where another process has the lease. What need not be written is not.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return false end
if not holder or redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) / 2 then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
redis.call('XTRIM', KEYS[3], 'MINID', '=', ARGV[3])
return redis.call('HVALS', KEYS[2])
