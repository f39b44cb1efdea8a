-- Writes a job's record and its place in the tenant's waiting set, once.
-- KEYS: job, waiting   ARGV: job id, job JSON, model, created_at_ms, deadline_at_ms, max_waiting
-- Returns {1}, or {0, number waiting, created_at_ms of the oldest}.
if redis.call('EXISTS', KEYS[1]) == 1 then return {1} end
local num_waiting = redis.call('ZCARD', KEYS[2])
if num_waiting >= tonumber(ARGV[6]) then
  return {0, num_waiting, redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]}
end
redis.call('HSET', KEYS[1], 'job', ARGV[2], 'state', 'queued', 'fence', '0', 'model', ARGV[3],
  'deadline_at_ms', ARGV[5])
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
return {1}
