-- Changes settings of a memory.
-- KEYS: meta, index   ARGV: name in the index, field, value or '' for none, field, value, ...
-- Returns 1, or 0 where there is no such memory.
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 0 then return 0 end
for place = 2, #ARGV, 2 do
  if ARGV[place + 1] == '' then
    redis.call('HDEL', KEYS[1], ARGV[place])
  else
    redis.call('HSET', KEYS[1], ARGV[place], ARGV[place + 1])
  end
end
return 1
