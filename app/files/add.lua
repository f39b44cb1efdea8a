-- Writes a file's record, unless the tenant keeps too many. The same record again changes nothing.
-- KEYS: file, index, expiries. ARGV: id, record, now (ms), expiry (ms), most files. Returns 1, or 0 where it is full.
local file, index, expiries = KEYS[1], KEYS[2], KEYS[3]
local id, record, now_ms, expires_at_ms, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

if redis.call('EXISTS', file) == 1 then
  return 1
end
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', expiries, '-inf', now_ms)) do
  redis.call('ZREM', index, gone)
  redis.call('ZREM', expiries, gone)
end
if redis.call('ZCARD', index) >= most then
  return 0
end
redis.call('SET', file, record, 'PX', math.max(1, expires_at_ms - now_ms))
redis.call('ZADD', index, 0, id)
redis.call('ZADD', expiries, expires_at_ms, id)
local last_ms = tonumber(redis.call('ZREVRANGE', expiries, 0, 0, 'WITHSCORES')[2])
local left_ms = math.max(1, last_ms - now_ms)
redis.call('PEXPIRE', index, left_ms)
redis.call('PEXPIRE', expiries, left_ms)
return 1
