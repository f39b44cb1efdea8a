-- Moves a tenant's oldest waiting job of one lane to its released jobs, unless it has too many of those in that lane.
-- KEYS: waiting, released   ARGV: score, max_released or '', lowest score of the lane, score below which it ends
-- Returns {job id or '', 1 where the next one could follow at once, else 0}.
local lowest, beyond = ARGV[3], '(' .. ARGV[4]
local room = (tonumber(ARGV[2]) or math.huge) - redis.call('ZCOUNT', KEYS[2], lowest, beyond)
if room <= 0 then return {'', 0} end
local job_id, next_id = unpack(redis.call('ZRANGEBYSCORE', KEYS[1], lowest, beyond, 'LIMIT', 0, 2))
if not job_id then return {'', 0} end
redis.call('ZREM', KEYS[1], job_id)
redis.call('ZADD', KEYS[2], ARGV[1], job_id)
return {job_id, (next_id and room > 1) and 1 or 0}
