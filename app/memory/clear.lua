-- Forgets all that a memory holds, at once: its log gets another name, under which only the clean-up reads it. What a job
-- that had read the memory before would add is not remembered either (commit.lua).
-- KEYS: meta, log, forgotten, remains, index, discarded log
-- ARGV: token of the call, member of the remains for the discarded log, name in the index, '1' where the memory itself
--   goes, how long its last version is remembered then
-- Returns {number forgotten, version after it}, or {-1}: there is no such memory. A call that is repeated answers as the
-- first did.
local token, before = unpack(redis.call('HMGET', KEYS[1], 'forget_token', 'forget_count'))
if token == ARGV[1] then return {tonumber(before), redis.call('HGET', KEYS[1], 'forget_version')} end
if redis.call('SISMEMBER', KEYS[5], ARGV[3]) == 0 then return {-1} end
local num_gone = redis.call('XLEN', KEYS[2])
if num_gone > 0 then
  redis.call('RENAME', KEYS[2], KEYS[6])
  redis.call('ZADD', KEYS[4], 0, ARGV[2])
else
  redis.call('DEL', KEYS[2])
end
redis.call('DEL', KEYS[3])
local version = text_of(redis.call('HINCRBY', KEYS[1], 'version', 1))
redis.call('HSET', KEYS[1], 'forget_version', version, 'cleared_version', version, 'floor_version', version,
  'floor_first', 1, 'forget_token', ARGV[1], 'forget_count', num_gone)
redis.call('HDEL', KEYS[1], 'snapshot_key')
if ARGV[4] == '1' then
  redis.call('SREM', KEYS[5], ARGV[3])
  redis.call('HDEL', KEYS[1], 'created_at_ms', 'frozen', 'max_entries', 'max_age_s', 'keep_prompts')
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
end
return {num_gone, version}
