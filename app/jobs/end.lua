-- Ends a job without images, if it is still in the expected state and under the expected fence ('' is any).
-- KEYS: job, waiting, released
-- ARGV: job id, expected state, expected fence, new state, failure JSON, now_ms, ttl_ms, channel, message
-- Returns {1, number waiting, stream id or ''} or {0}. A second call changes nothing.
local state, fence, failure, stream_id = unpack(redis.call('HMGET', KEYS[1], 'state', 'fence', 'failure', 'stream_id'))
local fence_holds = ARGV[3] == '' or fence == ARGV[3]
if state == ARGV[4] and failure == ARGV[5] and fence_holds then
  return {1, redis.call('ZCARD', KEYS[2]), stream_id or ''}
end
if state ~= ARGV[2] or not fence_holds then return {0} end
redis.call('HSET', KEYS[1], 'state', ARGV[4], 'failure', ARGV[5], 'finished_at_ms', ARGV[6])
redis.call('PEXPIRE', KEYS[1], ARGV[7])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('PUBLISH', ARGV[8], ARGV[9])
return {1, redis.call('ZCARD', KEYS[2]), stream_id or ''}
