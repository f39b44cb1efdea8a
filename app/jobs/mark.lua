-- Gives a tenant a turn after all others, unless it has one already, and wakes the model's workers.
-- KEYS: turns   ARGV: tenant, channel, model
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
  redis.call('ZADD', KEYS[1], string.format('%.0f', tonumber(last or 0) + 1), ARGV[1])
end
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
