-- Makes a fork that has all its entries be a memory, unless something was forgotten of the memory that it is of since its
-- entries were last looked at. It gets the settings, but is not frozen, and all notes of what was forgotten, so that a version
-- up to the one it is of is read, or refused, as there.
-- KEYS: fork's log, meta, log and forgotten of the memory, the same of the new one, index, remains, and as room.lua
--   has it
-- ARGV: name in the index, new name in the index, token of the call, version, last act of forgetting and bare_version that
--   the fork has followed, now_ms, most memories, and as room.lua has it
-- Returns 'made', 'gone': there is no such memory, 'changed', 'expired', 'exists', 'full', or as room.lua has it. A call that is
-- repeated answers as the first did.
if redis.call('HGET', KEYS[5], 'make_token') == ARGV[3] then return 'made' end
if redis.call('SISMEMBER', KEYS[8], ARGV[1]) == 0 then return 'gone' end
local forgotten, bare = unpack(redis.call('HMGET', KEYS[2], 'forget_version', 'bare_version'))
if (forgotten or '0') ~= ARGV[5] then return 'changed' end
local function ends_of(log)
  local first = redis.call('XRANGE', log, '-', ARGV[4] .. '-0', 'COUNT', 1)[1]
  local last = redis.call('XREVRANGE', log, ARGV[4] .. '-0', '-', 'COUNT', 1)[1]
  return (first and first[1] or '') .. ' ' .. (last and last[1] or '')
end
if ends_of(KEYS[1]) ~= ends_of(KEYS[3]) then return 'expired' end
if redis.call('SISMEMBER', KEYS[8], ARGV[2]) == 1 or tonumber(redis.call('HGET', KEYS[5], 'version') or 0) > 0 then
  return 'exists'
end
if redis.call('SCARD', KEYS[8]) >= tonumber(ARGV[8]) then return 'full' end
local lack = lacks_room(KEYS[8], redis.call('XLEN', KEYS[1]), 10, 9)
if lack then return lack end
local is_shared = redis.call('XLEN', KEYS[1]) > 0 and shares_nodes(KEYS[1])
redis.call('DEL', KEYS[5], KEYS[6], KEYS[7])
if redis.call('XLEN', KEYS[1]) > 0 then
  redis.call('RENAME', KEYS[1], KEYS[6])
  redis.call('PERSIST', KEYS[6])
  if is_shared then redis.call('ZADD', KEYS[9], 0, 'compact:' .. ARGV[2]) end
else
  redis.call('DEL', KEYS[1])
end
local version = math.max(tonumber(ARGV[4]), tonumber(forgotten or 0))
redis.call('HSET', KEYS[5], 'version', text_of(version), 'created_at_ms', ARGV[7], 'make_token', ARGV[3])
for _, field in ipairs({'forget_version', 'floor_version', 'floor_first', 'max_entries', 'max_age_s', 'keep_prompts',
  'bare_version'}) do
  local value = redis.call('HGET', KEYS[2], field)
  if value then redis.call('HSET', KEYS[5], field, value) end
end
if redis.call('EXISTS', KEYS[4]) == 1 then redis.call('COPY', KEYS[4], KEYS[7]) end
if version > tonumber(ARGV[4]) then -- versions in between were never the fork's: they cannot be read
  redis.call('ZADD', KEYS[7], text_of(version), text_of(tonumber(ARGV[4]) + 1) .. '-' .. text_of(version))
  redis.call('HSET', KEYS[5], 'forget_version', text_of(version))
end
if bare and (bare ~= ARGV[6] or redis.call('ZSCORE', KEYS[9], 'prompts:' .. ARGV[1])) then
  redis.call('ZADD', KEYS[9], 0, 'prompts:' .. ARGV[2])
end
redis.call('SADD', KEYS[8], ARGV[2])
return 'made'
