-- Takes a token of a tenant's bucket, which holds as many as it gets in a minute. What is kept is when it will be full.
-- KEYS: rate   ARGV: tokens a minute, now_ms
-- Returns {1 or 0: whether there was one, tokens left, ms until one is there, ms until all are}. Refused, nothing is taken.
local each_ms, now_ms = 60000 / tonumber(ARGV[1]), tonumber(ARGV[2])
local full_ms = math.max(now_ms, tonumber(redis.call('GET', KEYS[1]) or 0))
full_ms = math.min(full_ms, now_ms + 60000) -- a smaller quota before, or a clock that was ahead
local next_ms = full_ms + each_ms
if next_ms - now_ms > 60000.001 then
  return {0, 0, math.ceil(next_ms - now_ms - 60000), math.ceil(full_ms - now_ms)}
end
redis.call('SET', KEYS[1], string.format('%.3f', next_ms), 'PX', math.max(1, math.ceil(next_ms - now_ms)))
return {1, math.floor((60000.001 - (next_ms - now_ms)) / each_ms), 0, math.ceil(next_ms - now_ms)}
