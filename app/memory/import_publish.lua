-- Makes what an import has received be its memory, all at once: the staging log becomes the memory's log.
-- KEYS: import, staging log, imports, memory meta, memory log, memory index, and as room.lua has it
-- ARGV: import id, offset before, offset after, record JSON, ttl_ms, number of entries, version, created_at_ms,
--   first version that cannot be read as it was or '', version of the last act of forgetting, name in the index, and as room.lua
--   has it
-- Returns 'done', 'gone', 'moved', 'exists': the memory has versions by now, 'frozen': it takes nothing, or as room.lua has it. A
-- second call answers 'done' again.
local offset, memory = unpack(redis.call('HMGET', KEYS[1], 'offset', 'memory'))
if not offset then return 'gone' end
if memory then return offset == ARGV[3] and 'done' or 'moved' end
if offset ~= ARGV[2] then return 'moved' end
if redis.call('XLEN', KEYS[2]) ~= tonumber(ARGV[6]) then return 'gone' end
if tonumber(redis.call('HGET', KEYS[4], 'version') or 0) > 0 or redis.call('XLEN', KEYS[5]) > 0 then return 'exists' end
if redis.call('HEXISTS', KEYS[4], 'frozen') == 1 then return 'frozen' end
local lack = lacks_room(KEYS[6], redis.call('XLEN', KEYS[2]), 7, 12)
if lack then return lack end
if redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('RENAME', KEYS[2], KEYS[5])
  redis.call('PERSIST', KEYS[5])
end
redis.call('HSET', KEYS[4], 'version', ARGV[7], 'created_at_ms', ARGV[8])
if ARGV[9] ~= '' then
  redis.call('HSET', KEYS[4], 'forget_version', ARGV[10], 'floor_version', ARGV[10], 'floor_first', ARGV[9])
end
redis.call('PERSIST', KEYS[4])
redis.call('SADD', KEYS[6], ARGV[11])
redis.call('HSET', KEYS[1], 'offset', ARGV[3], 'record', ARGV[4], 'memory', ARGV[11])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('ZREM', KEYS[3], ARGV[1])
return 'done'
