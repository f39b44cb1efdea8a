-- Ends a job with its images: memory entries, result, terminal state and notification, all or nothing. One that was
-- cancelled meanwhile ends so, and nothing of it is remembered.
-- KEYS: job, waiting, released, events, webhooks, outbox, usage, memory meta, memory log, memory index, what was forgotten of the
--   memory
-- ARGV: job id, fence, now_ms, ttl_ms, result JSON, channel, message, failure JSON of a cancelled job,
--   name in the index, how far the memory had come when the job read it or '', name of this end, number of entries, entry,
--   entry, ..., and where they have prompts the same entries without
-- Whether the memory keeps prompts is asked here, so that none is kept once it does not. Nothing is remembered where the
-- memory is frozen, or all of it was forgotten since the job had read it. What is beyond its caps then goes.
-- Returns {'succeeded' or 'cancelled', lanes waiting, version after it or '', whether it ended by this name}, {'lost'}: the
-- fence is, or {'renamed', name}: the memory has that name since the job had read it, and nothing was done. A second call
-- changes nothing.
local state, fence, version, cancel = unpack(redis.call('HMGET', KEYS[1], 'state', 'fence', 'committed_version',
  'cancel_requested_at_ms'))
if fence ~= ARGV[2] then return {'lost'} end
if state == 'succeeded' or state == 'cancelled' then
  return {state, lanes_waiting(KEYS[2]), version or '', is_ended_by(KEYS[1], ARGV[11])}
end
if state ~= 'running' then return {'lost'} end
if not cancel and ARGV[10] ~= '' then
  for at, name in (redis.call('HGET', KEYS[8], 'renames') or ''):gmatch('(%d+)=([^;]+);') do
    if tonumber(ARGV[10]) < tonumber(at) then return {'renamed', name} end
  end
end
if cancel then
  state = 'cancelled'
  redis.call('HSET', KEYS[1], 'state', state, 'failure', ARGV[8], 'finished_at_ms', ARGV[3])
else
  state, version = 'succeeded', ''
  local before, cleared, frozen, keeps = unpack(redis.call('HMGET', KEYS[8], 'version', 'cleared_version', 'frozen',
    'keep_prompts'))
  local num_entries = tonumber(ARGV[12])
  local first = (keeps or #ARGV == 12 + num_entries) and 13 or 13 + num_entries
  local is_forgotten = cleared and ARGV[10] ~= '' and tonumber(ARGV[10]) < tonumber(cleared)
  if num_entries > 0 and not is_forgotten and not frozen then
    for index = 0, num_entries - 1 do
      version = string.format('%.0f', tonumber(before or 0) + index + 1)
      redis.call('XADD', KEYS[9], version .. '-0', 'e', ARGV[first + index])
    end
    redis.call('HSETNX', KEYS[8], 'created_at_ms', ARGV[3])
    redis.call('HSET', KEYS[8], 'version', version)
    redis.call('PERSIST', KEYS[8])
    redis.call('SADD', KEYS[10], ARGV[9])
    version = keep_caps(KEYS[8], KEYS[9], KEYS[11], ARGV[3]) or version
  end
  redis.call('HSET', KEYS[1], 'state', state, 'result', ARGV[5], 'finished_at_ms', ARGV[3],
    'committed_version', version)
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('ZREM', KEYS[3], ARGV[1])
tell_end(KEYS, ARGV[1], ARGV[4], state, ARGV[11])
redis.call('PUBLISH', ARGV[6], ARGV[7])
return {state, lanes_waiting(KEYS[2]), version or '', 1}
