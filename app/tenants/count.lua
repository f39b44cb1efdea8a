-- Adds to a tenant's count of requests of a day. As the day's first are counted, days that are too old are dropped.
-- KEYS: usage   ARGV: day, number, first day that is kept, time to live (ms)
if redis.call('HINCRBY', KEYS[1], ARGV[1] .. ':requests', ARGV[2]) == tonumber(ARGV[2]) then
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if tonumber(string.match(field, '^%d+')) < tonumber(ARGV[3]) then redis.call('HDEL', KEYS[1], field) end
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
