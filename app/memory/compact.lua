-- Copies some more entries of a log into one that has no deleted ones, and gives that the log's name once it has all.
-- Entries that were forgotten since they were copied are found by their number, and the copy is begun anew. Where only caps
-- took some, which are the oldest, they go from the copy: a memory in use and at its cap would never be done.
-- KEYS: log, copy, remains, meta   ARGV: most entries, member of the remains for the log
-- Returns 1 where it is done, else 0.
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('UNLINK', KEYS[2])
  redis.call('ZREM', KEYS[3], ARGV[2])
  return 1
end
local act, begun_after = unpack(redis.call('HMGET', KEYS[4], 'forget_token', 'compacted_after'))
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local page = redis.call('XRANGE', KEYS[1], last and '(' .. last[1] or '-', '+', 'COUNT', ARGV[1])
for _, entry in ipairs(page) do redis.call('XADD', KEYS[2], entry[1], unpack(entry[2])) end
if not last then redis.call('HSET', KEYS[4], 'compacted_after', act or '') end
if #page == tonumber(ARGV[1]) then return 0 end
if last and begun_after == (act or '') then
  local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  if oldest then redis.call('XTRIM', KEYS[2], 'MINID', oldest[1]) end
end
if redis.call('XLEN', KEYS[2]) ~= redis.call('XLEN', KEYS[1]) then
  redis.call('UNLINK', KEYS[2])
  return 0
end
redis.call('UNLINK', KEYS[1]) -- freed in the background, which RENAME would not do
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('RENAME', KEYS[2], KEYS[1]) end
redis.call('ZREM', KEYS[3], ARGV[2])
return 1
