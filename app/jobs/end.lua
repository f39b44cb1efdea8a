-- Ends a job without images, if it is still in the expected state and under the expected fence ('' is any). One that
-- was cancelled meanwhile ends so.
-- KEYS: job, waiting, released, events, webhooks, outbox, usage
-- ARGV: job id, expected state, expected fence, new state, failure JSON, now_ms, ttl_ms, channel, message,
--   failure JSON of a cancelled job, '1' where a dead letter is due, name of this end
-- Returns {1, lanes waiting, stream id or '', state, dead or '', whether it ended by this name} or {0}. A second call changes
-- nothing.
local state, fence, failure, stream_id, cancel, dead = unpack(redis.call('HMGET', KEYS[1], 'state', 'fence', 'failure',
  'stream_id', 'cancel_requested_at_ms', 'dead'))
local fence_holds = ARGV[3] == '' or fence == ARGV[3]
local new_state, new_failure, letter = ARGV[4], ARGV[5], ARGV[11]
if cancel then new_state, new_failure, letter = 'cancelled', ARGV[10], '' end
if state == new_state and failure == new_failure and fence_holds then
  return {1, lanes_waiting(KEYS[2]), stream_id or '', state, dead or '', is_ended_by(KEYS[1], ARGV[12])}
end
if state ~= ARGV[2] or not fence_holds then return {0} end
redis.call('HSET', KEYS[1], 'state', new_state, 'failure', new_failure, 'finished_at_ms', ARGV[6])
if letter == '1' then redis.call('HSET', KEYS[1], 'dead', '1') end
redis.call('PEXPIRE', KEYS[1], ARGV[7])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
tell_end(KEYS, ARGV[1], ARGV[7], new_state, ARGV[12])
redis.call('PUBLISH', ARGV[8], ARGV[9])
return {1, lanes_waiting(KEYS[2]), stream_id or '', new_state, letter, 1}
