-- Notes that lines have become jobs or were refused, and moves the cursor past them. The same call again changes nothing.
-- KEYS: batch, lease, flight, refused
-- ARGV: token, line before, line after, byte after, number failed, number refused, then for each of these its number and
--   JSON, then lines in flight
-- Returns the batch's state, or '' where the lease is lost or the cursor is elsewhere.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return '' end
local state, line = unpack(redis.call('HMGET', KEYS[1], 'state', 'next_line'))
if state ~= 'in_progress' or line == ARGV[3] then return state or '' end
if line ~= ARGV[2] then return '' end
redis.call('HSET', KEYS[1], 'next_line', ARGV[3], 'next_byte', ARGV[4])
redis.call('HINCRBY', KEYS[1], 'failed', ARGV[5])
local first = 7 + 2 * tonumber(ARGV[6])
for index = 7, first - 1, 2 do redis.call('HSET', KEYS[4], ARGV[index], ARGV[index + 1]) end
for index = first, #ARGV do redis.call('SADD', KEYS[3], ARGV[index]) end
return state
