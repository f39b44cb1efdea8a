-- Counts entries of a log behind a version, a page of them.
-- KEYS: log   ARGV: version, most entries
-- Returns {number, last version counted}. A page shorter than asked for is the last one.
local page = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1] .. '-0', '+', 'COUNT', ARGV[2])
if #page == 0 then return {0, ARGV[1]} end
return {#page, page[#page][1]:match('^%d+')}
