-- Copies some more entries of a log, up to a version, into that of a fork on its way.
-- KEYS: log, fork's log   ARGV: version, most entries, ttl_ms
-- Returns 1 where there may be more, else 0.
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local page = redis.call('XRANGE', KEYS[1], last and '(' .. last[1] or '-', ARGV[1] .. '-0', 'COUNT', ARGV[2])
for _, entry in ipairs(page) do redis.call('XADD', KEYS[2], entry[1], unpack(entry[2])) end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return #page == tonumber(ARGV[2]) and 1 or 0
