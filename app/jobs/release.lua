-- Moves a tenant's oldest waiting job to its released jobs, unless it has too many of those.
-- KEYS: waiting, released   ARGV: now_ms, max_released   Returns the job id, or nil.
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[2]) then return false end
local job_id = redis.call('ZRANGE', KEYS[1], 0, 0)[1]
if job_id then
  redis.call('ZREM', KEYS[1], job_id)
  redis.call('ZADD', KEYS[2], ARGV[1], job_id)
end
return job_id
