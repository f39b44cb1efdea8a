-- Writes a new batch, unless the tenant has too many open ones. The same batch again changes nothing. An idempotency
-- record names the first batch of its key, and what was asked for then.
-- KEYS: batch, index, open ids, expiries, [idempotency]
-- ARGV: id, batch JSON, now_ms, most open, [fingerprint, its time to live]
-- Returns {'created'}, {'known', id of the first}, {'other'}: the key's first request was another one, or
-- {'full', number open}.
if KEYS[5] then
  local first_id, fingerprint = unpack(redis.call('HMGET', KEYS[5], 'batch_id', 'fingerprint'))
  if fingerprint and fingerprint ~= ARGV[5] then return {'other'} end
  if first_id and first_id ~= ARGV[1] then return {'known', first_id} end
end
if redis.call('EXISTS', KEYS[1]) == 1 then return {'created'} end
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', ARGV[3])) do
  redis.call('ZREM', KEYS[2], gone)
  redis.call('ZREM', KEYS[4], gone)
end
local num_open = redis.call('SCARD', KEYS[3])
if num_open >= tonumber(ARGV[4]) then return {'full', num_open} end
redis.call('HSET', KEYS[1], 'batch', ARGV[2], 'state', 'validating', 'at:validating', ARGV[3])
redis.call('ZADD', KEYS[2], 0, ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
if KEYS[5] then
  redis.call('HSET', KEYS[5], 'batch_id', ARGV[1], 'fingerprint', ARGV[5])
  redis.call('PEXPIRE', KEYS[5], ARGV[6])
end
return {'created'}
