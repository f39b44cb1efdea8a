-- Adds a page to the copy of a log, if that goes on from where the copy ends.
-- KEYS: copy   ARGV: last id of the copy or '', ttl_ms, id, entry, id, entry, ...
-- Returns 1, or 0 where it is elsewhere: somebody else writes it too.
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if (last and last[1] or '') ~= ARGV[1] then return 0 end
for place = 3, #ARGV, 2 do redis.call('XADD', KEYS[1], ARGV[place], 'e', ARGV[place + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
