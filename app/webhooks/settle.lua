-- Ends a delivery, or puts it off; one that is no longer to be made stays so.
-- KEYS: due, waiting, attempts   ARGV: id, when to try next or '' where it has ended, attempts so far, ttl_ms
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
if ARGV[2] == '' then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('HDEL', KEYS[3], ARGV[1])
  return 1
end
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[3])
for index = 1, 3 do redis.call('PEXPIRE', KEYS[index], ARGV[4]) end
return 1
