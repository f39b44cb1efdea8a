-- Writes a job's record and its place in the tenant's waiting set, once. An idempotency record names the first job of
-- its key, and what was asked for then. Its images are charged to the day, once.
-- KEYS: job, waiting, events, jobs, usage, [idempotency]
-- ARGV: job id, job JSON, model, created_at_ms, deadline_at_ms, max_waiting, lane, score, oldest job id listed,
--   time to live of the list, number of images, most images a day or '', day, time to live of usage, '1' for a
--   quiet job, [fingerprint, its time to live]
-- A quiet job has no events, is in no list and is told to no webhook. Where there are no images, nothing is charged.
-- Returns {'accepted', number waiting, images of the day}, {'over', number waiting, images of the day}: it was accepted
-- before and has ended, {'known', number waiting, images of the day, job id of the first}, {'other'}: the key's first
-- request was another one, {'full', number waiting, score of the oldest}, or {'spent', images of the day}.
local num_waiting = redis.call('ZCARD', KEYS[2])
local num_images = tonumber(redis.call('HGET', KEYS[5], ARGV[13] .. ':images') or 0)
if KEYS[6] then
  local first_id, fingerprint = unpack(redis.call('HMGET', KEYS[6], 'job_id', 'fingerprint'))
  if fingerprint and fingerprint ~= ARGV[16] then return {'other'} end
  if first_id and first_id ~= ARGV[1] then return {'known', num_waiting, num_images, first_id} end
end
local state = redis.call('HGET', KEYS[1], 'state')
if state then return {(state == 'queued' or state == 'running') and 'accepted' or 'over', num_waiting, num_images} end
if num_waiting >= tonumber(ARGV[6]) then
  return {'full', num_waiting, redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]}
end
local is_quiet, is_charged = ARGV[15] ~= '', ARGV[11] ~= '0'
if is_charged and ARGV[12] ~= '' and num_images + tonumber(ARGV[11]) > tonumber(ARGV[12]) then return {'spent', num_images} end
redis.call('HSET', KEYS[1], 'job', ARGV[2], 'state', 'queued', 'fence', '0', 'model', ARGV[3],
  'deadline_at_ms', ARGV[5], 'lane', ARGV[7])
if is_quiet then redis.call('HSET', KEYS[1], 'quiet', '1') end
if is_charged then
  num_images = redis.call('HINCRBY', KEYS[5], ARGV[13] .. ':images', ARGV[11])
  redis.call('HINCRBY', KEYS[5], ARGV[13] .. ':jobs', 1)
  redis.call('PEXPIRE', KEYS[5], ARGV[14])
  redis.call('HSET', KEYS[1], 'charged', ARGV[13] .. ':' .. ARGV[11])
end
redis.call('ZADD', KEYS[2], ARGV[8], ARGV[1])
if ARGV[7] ~= 'batch' and not is_quiet then
  redis.call('XADD', KEYS[3], '*', 'type', 'queued')
  redis.call('ZADD', KEYS[4], 0, ARGV[1])
  redis.call('ZREMRANGEBYLEX', KEYS[4], '-', '(' .. ARGV[9])
  redis.call('PEXPIRE', KEYS[4], ARGV[10])
end
if KEYS[6] then
  redis.call('HSET', KEYS[1], 'idempotency', KEYS[6])
  redis.call('HSET', KEYS[6], 'job_id', ARGV[1], 'fingerprint', ARGV[16])
  redis.call('PEXPIRE', KEYS[6], ARGV[17])
end
return {'accepted', num_waiting + 1, num_images}
