-- Takes images out of an ended job's record, or the record, its events and its idempotency key away: of what was forgotten
-- nothing may tell.
-- KEYS: job, events, jobs, [idempotency]   ARGV: job id, result JSON as it was read, result JSON without the images, or ''
-- Returns 1, or 0 where the result is not the one that was read: read it again.
local result = redis.call('HGET', KEYS[1], 'result')
if (result or '') ~= ARGV[2] then return 0 end
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'result', ARGV[3])
  return 1
end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[1])
if KEYS[4] and redis.call('HGET', KEYS[4], 'job_id') == ARGV[1] then redis.call('DEL', KEYS[4]) end
return 1
