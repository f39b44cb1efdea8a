-- Gives a copy the name of its log once it has all that the log has. The oldest entries go from it as they went from the log,
-- as caps have it. Others that went since they were copied are found by their number; then, and where other prompts are to be
-- taken out by now, the copy is begun anew.
-- KEYS: log, copy, and of a memory: compacted copy, meta, remains   ARGV: bare_version of the meta or '', member of the
--   remains or ''
-- Returns 1 where it is done, else 0.

-- Where entries of the copy alone share nodes, taking one out would leave its bytes, and nothing is noted that removes them.
local function drop_oldest(log, copy)
  local first = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  if first and redis.call('EXISTS', copy) == 1 and (shares_nodes(log) or not shares_nodes(copy)) then
    redis.call('XTRIM', copy, 'MINID', first[1])
  end
end

local function place_of(entry) return entry and tonumber(entry[1]:match('^%d+')) or 0 end

local guard = KEYS[4] and redis.call('HGET', KEYS[4], 'bare_version') or ''
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('UNLINK', KEYS[2])
else
  if guard ~= ARGV[1] then
    redis.call('UNLINK', KEYS[2])
    return 0
  end
  drop_oldest(KEYS[1], KEYS[2])
  local from = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  local to = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
  if redis.call('XLEN', KEYS[1]) ~= redis.call('XLEN', KEYS[2]) or (from and from[1]) ~= (to and to[1]) then
    if place_of(to) >= place_of(from) then redis.call('UNLINK', KEYS[2]) end
    return 0
  end
  if to then
    local ttl_ms = redis.call('PTTL', KEYS[1])
    redis.call('UNLINK', KEYS[1]) -- freed in the background, which RENAME would not do
    redis.call('RENAME', KEYS[2], KEYS[1])
    if ttl_ms > 0 then redis.call('PEXPIRE', KEYS[1], ttl_ms) else redis.call('PERSIST', KEYS[1]) end
  end
  if KEYS[3] then redis.call('UNLINK', KEYS[3]) end
end
if ARGV[2] ~= '' then redis.call('ZREM', KEYS[5], ARGV[2]) end
return 1
