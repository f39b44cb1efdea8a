-- Moves a tenant's oldest waiting job of one lane to its released jobs, unless it has too many of those in that lane.
-- KEYS: waiting, released   ARGV: score, max_released, lowest score of the lane, score below which it ends
-- Returns the job id, or nil.
if redis.call('ZCOUNT', KEYS[2], ARGV[3], '(' .. ARGV[4]) >= tonumber(ARGV[2]) then return false end
local job_id = redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[3], '(' .. ARGV[4], 'LIMIT', 0, 1)[1]
if job_id then
  redis.call('ZREM', KEYS[1], job_id)
  redis.call('ZADD', KEYS[2], ARGV[1], job_id)
end
return job_id
