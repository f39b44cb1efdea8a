-- Takes entries of a range of versions out of a fork on its way, some at a time.
-- KEYS: fork's log   ARGV: first version, last version, most entries
-- Returns 1 where there may be more, else 0.
local page = redis.call('XRANGE', KEYS[1], ARGV[1] .. '-0', ARGV[2] .. '-0', 'COUNT', ARGV[3])
for _, entry in ipairs(page) do redis.call('XDEL', KEYS[1], entry[1]) end
return #page == tonumber(ARGV[3]) and 1 or 0
