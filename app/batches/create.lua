-- Writes a new batch, unless the tenant has too many open ones. The same batch again changes nothing.
-- KEYS: batch, index, open ids, expiries   ARGV: id, batch JSON, now_ms, most open
-- Returns {1}, or {0, number open}.
if redis.call('EXISTS', KEYS[1]) == 1 then return {1} end
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', ARGV[3])) do
  redis.call('ZREM', KEYS[2], gone)
  redis.call('ZREM', KEYS[4], gone)
end
local num_open = redis.call('SCARD', KEYS[3])
if num_open >= tonumber(ARGV[4]) then return {0, num_open} end
redis.call('HSET', KEYS[1], 'batch', ARGV[2], 'state', 'validating', 'at:validating', ARGV[3])
redis.call('ZADD', KEYS[2], 0, ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
return {1}
