-- Enters a job into the model's set of open jobs before its tenant's slot hears of it, so a crash in between is found.
-- KEYS: open   ARGV: member, created_at_ms, max_open   Returns {1}, or {0, number open, created_at_ms of the oldest}.
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then return {1} end
local num_open = redis.call('ZCARD', KEYS[1])
if num_open >= tonumber(ARGV[3]) then
  return {0, num_open, redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]}
end
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
return {1}
