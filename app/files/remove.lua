-- Removes a file's record. KEYS: file, index, expiries, sizes. ARGV: id, now (ms). Returns 1, or 0 where no such file is there.
local expires_at_ms = redis.call('ZSCORE', KEYS[3], ARGV[1])
local existed = redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
if existed == 1 and expires_at_ms and tonumber(expires_at_ms) > tonumber(ARGV[2]) then
  return 1
end
return 0
