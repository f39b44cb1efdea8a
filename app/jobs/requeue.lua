-- Makes a running job queued again, if it runs under the fence or under the stream entry ('' is any); one that was
-- cancelled meanwhile ends so. It stays released; a new stream entry must follow.
-- KEYS: job, waiting, released, events, webhooks, outbox, usage
-- ARGV: job id, fence or '', stream id or '', '1' where the attempt does not count, failure JSON of a cancelled job,
--   now_ms, ttl_ms, channel, message, channel of events, name of this end, should it be one
-- Returns {'queued'}, also where it was and only an entry is named; {'cancelled', lanes waiting}: it ended by this name;
-- {'dead', lanes waiting}: it had ended under this entry, and its letter may not have been written; {'over'}.
local state, fence, stream_id, worker_id, begun_fence, cancel, dead = unpack(redis.call('HMGET', KEYS[1], 'state',
  'fence', 'stream_id', 'worker_id', 'begun_fence', 'cancel_requested_at_ms', 'dead'))
if state == 'queued' and ARGV[2] == '' then return {'queued'} end
if dead and stream_id == ARGV[3] then return {'dead', lanes_waiting(KEYS[2])} end
if state == 'cancelled' and is_ended_by(KEYS[1], ARGV[11]) == 1 then return {state, lanes_waiting(KEYS[2])} end
if state ~= 'running' or (ARGV[2] ~= '' and fence ~= ARGV[2]) or (ARGV[3] ~= '' and stream_id ~= ARGV[3]) then
  return {'over'}
end
if cancel then
  redis.call('HSET', KEYS[1], 'state', 'cancelled', 'failure', ARGV[5], 'finished_at_ms', ARGV[6])
  redis.call('PEXPIRE', KEYS[1], ARGV[7])
  redis.call('ZREM', KEYS[3], ARGV[1])
  tell_end(KEYS, ARGV[1], ARGV[7], 'cancelled', ARGV[11])
  redis.call('PUBLISH', ARGV[8], ARGV[9])
  return {'cancelled', lanes_waiting(KEYS[2])}
end
if ARGV[4] == '1' and begun_fence == fence then redis.call('HINCRBY', KEYS[1], 'attempts', -1) end
redis.call('HSET', KEYS[1], 'state', 'queued', 'last_worker_id', worker_id)
redis.call('HDEL', KEYS[1], 'worker_id', 'started_at_ms', 'stream_id')
tell(KEYS[4], 'type', 'queued')
redis.call('PUBLISH', ARGV[10], ARGV[9])
return {'queued'}
