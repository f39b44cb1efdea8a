-- Puts a record in the place of the one that was read, unless it is another one by now. Once more changes nothing.
-- KEYS: keys   ARGV: id, record as it was read, new record   Returns 1, or 0 where it is another one.
local found = redis.call('HGET', KEYS[1], ARGV[1])
if found == ARGV[3] then return 1 end
if found ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
