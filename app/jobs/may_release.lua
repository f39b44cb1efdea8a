-- Whether `release` would find a job now.
-- KEYS: waiting, released   ARGV: max_released   Returns 1 or 0.
if redis.call('ZCARD', KEYS[1]) > 0 and redis.call('ZCARD', KEYS[2]) < tonumber(ARGV[1]) then return 1 end
return 0
