-- Starts a job that was delivered to a worker: a new fence, running. One that was begun too often ends as poison.
-- KEYS: job, waiting, released, events, webhooks, outbox, usage
-- ARGV: job id, worker id, stream id, now_ms, ttl_ms, failure JSON of an expired job, channel, message, max_attempts,
--   failure JSON of a poison job, channel of events, name of this end, should it be one
-- Returns {'started', fence, job JSON, attempts before}; {'expired', lanes waiting, whether it ended by this name}; {'dead',
-- lanes waiting, the same}: it is poison, and its letter is due; {'held'}: it runs under this very entry; {'over'}: it has ended, runs under another
-- entry, or is unknown.
local state, deadline_at_ms, worker_id, stream_id, attempts, dead, lane = unpack(redis.call('HMGET', KEYS[1], 'state',
  'deadline_at_ms', 'worker_id', 'stream_id', 'attempts', 'dead', 'lane'))
attempts = tonumber(attempts or 0)
if state == 'queued' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  local is_late = tonumber(ARGV[4]) >= tonumber(deadline_at_ms)
  if is_late or attempts >= tonumber(ARGV[9]) then
    local outcome = 'expired'
    redis.call('ZREM', KEYS[3], ARGV[1])
    if is_late then
      redis.call('HSET', KEYS[1], 'state', 'expired', 'failure', ARGV[6], 'finished_at_ms', ARGV[4])
    else
      outcome = 'dead'
      redis.call('HSET', KEYS[1], 'state', 'failed', 'failure', ARGV[10], 'finished_at_ms', ARGV[4],
        'stream_id', ARGV[3], 'dead', '1')
    end
    redis.call('PEXPIRE', KEYS[1], ARGV[5])
    tell_end(KEYS, ARGV[1], ARGV[5], outcome == 'dead' and 'failed' or outcome, ARGV[12])
    redis.call('PUBLISH', ARGV[7], ARGV[8])
    return {outcome, lanes_waiting(KEYS[2]), 1}
  end
  local from = lane == 'batch' and BATCH_FROM or 0
  redis.call('ZADD', KEYS[3], 'NX', string.format('%.0f', from + tonumber(ARGV[4])), ARGV[1])
  -- A time, so that no number comes twice, not even where a fail-over took the record back to before an earlier start.
  local before = tonumber(redis.call('HGET', KEYS[1], 'fence') or 0)
  local fence = string.format('%.0f', math.max(before + 1, tonumber(ARGV[4])))
  redis.call('HSET', KEYS[1], 'state', 'running', 'fence', fence, 'worker_id', ARGV[2], 'stream_id', ARGV[3],
    'started_at_ms', ARGV[4])
  tell(KEYS[4], 'type', 'running', 'attempt', tostring(attempts + 1))
  redis.call('PUBLISH', ARGV[11], ARGV[8])
  return {'started', fence, redis.call('HGET', KEYS[1], 'job'), attempts}
end
local is_ours = is_ended_by(KEYS[1], ARGV[12])
if dead and stream_id == ARGV[3] then return {'dead', lanes_waiting(KEYS[2]), is_ours} end
if state == 'expired' and is_ours == 1 then return {state, lanes_waiting(KEYS[2]), is_ours} end
if state == 'running' and stream_id == ARGV[3] then
  if worker_id == ARGV[2] then -- the answer to this worker's first call was lost
    return {'started', redis.call('HGET', KEYS[1], 'fence'), redis.call('HGET', KEYS[1], 'job'), attempts}
  end
  return {'held'}
end
return {'over'}
