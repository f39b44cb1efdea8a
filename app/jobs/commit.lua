-- Ends a job with its images: memory entries, result, terminal state and notification, all or nothing.
-- KEYS: job, waiting, released, memory meta, memory log, memory index
-- ARGV: job id, fence, now_ms, ttl_ms, result JSON, channel, message, name in the index, entry, entry, ...
-- Returns {1, number waiting, version after it or ''}, or {0} where the fence is lost. A second call changes nothing.
local state, fence, version = unpack(redis.call('HMGET', KEYS[1], 'state', 'fence', 'committed_version'))
if state == 'succeeded' and fence == ARGV[2] then return {1, redis.call('ZCARD', KEYS[2]), version} end
if state ~= 'running' or fence ~= ARGV[2] then return {0} end
version = ''
if #ARGV > 8 then
  local before = tonumber(redis.call('HGET', KEYS[4], 'version') or 0)
  for index = 9, #ARGV do
    version = string.format('%.0f', before + index - 8)
    redis.call('XADD', KEYS[5], version .. '-0', 'e', ARGV[index])
  end
  redis.call('HSETNX', KEYS[4], 'created_at_ms', ARGV[3])
  redis.call('HSET', KEYS[4], 'version', version)
  redis.call('SADD', KEYS[6], ARGV[8])
end
redis.call('HSET', KEYS[1], 'state', 'succeeded', 'result', ARGV[5], 'finished_at_ms', ARGV[3],
  'committed_version', version)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('PUBLISH', ARGV[6], ARGV[7])
return {1, redis.call('ZCARD', KEYS[2]), version}
