-- Gives a memory another name, with all that belongs to it. Under the old one its versions are remembered for a while: they are
-- in answers that clients keep and in workers' copies. A name may be taken back as long as nothing was made under it.
-- `renames` belong to a name, whatever has it: `<version that it got by that>=<new name>;`, the last 20 of them, so that a
-- job finds what it had read.
-- KEYS: meta, log, forgotten, compacted copy and rewritten copy of the old name, meta, log and forgotten of the new one, index,
--   remains
-- ARGV: old and new name in the index, old name, new name, token of the call, how long the versions are remembered
-- Returns 'made', 'gone': there is no such memory, or 'exists'. A call that is repeated answers as the first did.
if redis.call('HGET', KEYS[6], 'make_token') == ARGV[5] then return 'made' end
if redis.call('SISMEMBER', KEYS[9], ARGV[1]) == 0 then return 'gone' end
local before, came_to, came_at = unpack(redis.call('HMGET', KEYS[6], 'version', 'renamed_to', 'renamed_version'))
before = tonumber(before or 0)
local of_old, of_new = redis.call('HGET', KEYS[1], 'renames') or '', redis.call('HGET', KEYS[6], 'renames') or ''
local is_taken_back = came_to == ARGV[3] and tonumber(came_at) == before
if redis.call('SISMEMBER', KEYS[9], ARGV[2]) == 1 or (before > 0 and not is_taken_back) then return 'exists' end
for place = 6, 8 do
  redis.call('DEL', KEYS[place])
  if redis.call('EXISTS', KEYS[place - 5]) == 1 then redis.call('RENAME', KEYS[place - 5], KEYS[place]) end
end
redis.call('UNLINK', KEYS[4], KEYS[5])
redis.call('SREM', KEYS[9], ARGV[1])
redis.call('SADD', KEYS[9], ARGV[2])
for _, kind in ipairs({'compact:', 'prompts:'}) do
  if redis.call('ZREM', KEYS[10], kind .. ARGV[1]) == 1 then redis.call('ZADD', KEYS[10], 0, kind .. ARGV[2]) end
end
local version = math.max(before, tonumber(redis.call('HGET', KEYS[6], 'version') or 0))
if is_taken_back then of_new = of_new:gsub('%d+=[^;]+;$', '') end
redis.call('HSET', KEYS[6], 'version', text_of(version), 'make_token', ARGV[5], 'renames', of_new)
redis.call('HDEL', KEYS[6], 'renamed_to', 'renamed_version')
local after, all = text_of(version + 1), {}
for rename in of_old:gmatch('[^;]+;') do all[#all + 1] = rename end
all[#all + 1] = after .. '=' .. ARGV[4] .. ';'
local kept = table.concat(all, '', math.max(1, #all - 19))
redis.call('HSET', KEYS[1], 'version', after, 'renames', kept, 'renamed_version', after, 'renamed_to', ARGV[4],
  'cleared_version', after, 'forget_version', after, 'floor_version', after, 'floor_first', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[6])
return 'made'
