-- Writes a file's record, unless the tenant keeps too many or too much. The same record again changes nothing.
-- KEYS: file, index, expiries, sizes. ARGV: id, record, now (ms), expiry (ms), most files, bytes, most bytes or ''.
-- Returns 1, 0 where there are too many, or 2 where there is no room for its bytes.
local file, index, expiries, sizes = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, record, now_ms, expires_at_ms, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local num_bytes, most_bytes = tonumber(ARGV[6]), tonumber(ARGV[7])

if redis.call('EXISTS', file) == 1 then
  return 1
end
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', expiries, '-inf', now_ms)) do
  redis.call('ZREM', index, gone)
  redis.call('ZREM', expiries, gone)
  redis.call('HDEL', sizes, gone)
end
if redis.call('ZCARD', index) >= most then
  return 0
end
if most_bytes then
  local sum = num_bytes
  for _, size in ipairs(redis.call('HVALS', sizes)) do sum = sum + tonumber(size) end
  if sum > most_bytes then
    return 2
  end
end
redis.call('SET', file, record, 'PX', math.max(1, expires_at_ms - now_ms))
redis.call('ZADD', index, 0, id)
redis.call('ZADD', expiries, expires_at_ms, id)
redis.call('HSET', sizes, id, ARGV[6])
local last_ms = tonumber(redis.call('ZREVRANGE', expiries, 0, 0, 'WITHSCORES')[2])
local left_ms = math.max(1, last_ms - now_ms)
redis.call('PEXPIRE', index, left_ms)
redis.call('PEXPIRE', expiries, left_ms)
redis.call('PEXPIRE', sizes, left_ms)
return 1
