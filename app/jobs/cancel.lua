-- Cancels one job: a queued one at once; a running one is asked to end and can no longer succeed; an ended one stays.
-- KEYS: job, waiting, released, events, webhooks, outbox, usage   ARGV: job id, failure JSON, now_ms, ttl_ms, channel, message,
--   channel of events, name of this end
-- Returns {state after it, lanes waiting, stream id or '', whether it ended by this name}, or {} where the job is unknown. A
-- second call changes nothing.
local state, stream_id = unpack(redis.call('HMGET', KEYS[1], 'state', 'stream_id'))
if not state then return {} end
if state == 'running' then
  if redis.call('HSETNX', KEYS[1], 'cancel_requested_at_ms', ARGV[3]) == 1 then
    tell(KEYS[4], 'type', 'cancel_requested')
    redis.call('PUBLISH', ARGV[7], ARGV[6])
  end
elseif state == 'queued' then
  state = 'cancelled'
  redis.call('HSET', KEYS[1], 'state', state, 'failure', ARGV[2], 'finished_at_ms', ARGV[3],
    'cancel_requested_at_ms', ARGV[3])
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  tell_end(KEYS, ARGV[1], ARGV[4], state, ARGV[8])
  redis.call('PUBLISH', ARGV[5], ARGV[6])
end
return {state, lanes_waiting(KEYS[2]), stream_id or '', is_ended_by(KEYS[1], ARGV[8])}
