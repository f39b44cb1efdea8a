-- Changes settings of a memory. Where prompts are not to be kept any more, those that are there are to be taken out: until
-- that is done nobody is shown them.
-- KEYS: meta, index, remains   ARGV: name in the index, member of the remains for its prompts, field, value or '' for none, ...
-- Returns 1, or 0 where there is no such memory.
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 0 then return 0 end
for place = 3, #ARGV, 2 do
  if ARGV[place + 1] ~= '' then
    redis.call('HSET', KEYS[1], ARGV[place], ARGV[place + 1])
  else
    redis.call('HDEL', KEYS[1], ARGV[place])
    if ARGV[place] == 'keep_prompts' then
      redis.call('HSET', KEYS[1], 'bare_version', redis.call('HGET', KEYS[1], 'version') or '0')
      redis.call('ZADD', KEYS[3], 0, ARGV[2])
    end
  end
end
return 1
