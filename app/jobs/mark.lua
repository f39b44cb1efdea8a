-- Gives a tenant a turn after all others in each lane that is given, unless it has one, and wakes the model's workers.
-- KEYS: turns, turns, ...   ARGV: tenant, channel, model
for _, turns in ipairs(KEYS) do
  if not redis.call('ZSCORE', turns, ARGV[1]) then
    local last = redis.call('ZRANGE', turns, -1, -1, 'WITHSCORES')[2]
    redis.call('ZADD', turns, string.format('%.0f', tonumber(last or 0) + 1), ARGV[1])
  end
end
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
