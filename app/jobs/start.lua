-- Starts a job that was delivered to a worker: a new fence, running.
-- KEYS: job, waiting, released
-- ARGV: job id, worker id, stream id, now_ms, ttl_ms, failure JSON of an expired job, channel, message
-- Returns {'started', fence, job JSON}; {'expired', number waiting}; {'held'}: it runs under this very entry;
-- {'over'}: it has ended, runs under another entry, or is unknown.
local state, deadline_at_ms, worker_id, stream_id =
  unpack(redis.call('HMGET', KEYS[1], 'state', 'deadline_at_ms', 'worker_id', 'stream_id'))
if state == 'queued' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  if tonumber(ARGV[4]) >= tonumber(deadline_at_ms) then
    redis.call('ZREM', KEYS[3], ARGV[1])
    redis.call('HSET', KEYS[1], 'state', 'expired', 'failure', ARGV[6], 'finished_at_ms', ARGV[4])
    redis.call('PEXPIRE', KEYS[1], ARGV[5])
    redis.call('PUBLISH', ARGV[7], ARGV[8])
    return {'expired', redis.call('ZCARD', KEYS[2])}
  end
  redis.call('ZADD', KEYS[3], 'NX', ARGV[4], ARGV[1])
  local fence = redis.call('HINCRBY', KEYS[1], 'fence', 1)
  redis.call('HSET', KEYS[1], 'state', 'running', 'worker_id', ARGV[2], 'stream_id', ARGV[3],
    'started_at_ms', ARGV[4])
  return {'started', fence, redis.call('HGET', KEYS[1], 'job')}
end
if state == 'running' and stream_id == ARGV[3] then
  if worker_id == ARGV[2] then -- the answer to this worker's first call was lost
    return {'started', redis.call('HGET', KEYS[1], 'fence'), redis.call('HGET', KEYS[1], 'job')}
  end
  return {'held'}
end
return {'over'}
