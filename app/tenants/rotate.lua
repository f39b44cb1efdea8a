-- Writes the key that takes another one's place, and when that one ends, both or neither. Once more changes nothing.
-- KEYS: keys   ARGV: old id, old record as it was read, old record with its end, new id, new record
-- Returns 'done', 'changed': the old record is another one by now, or 'taken': the new id is.
local new = redis.call('HGET', KEYS[1], ARGV[4])
if new == ARGV[5] then return 'done' end
if new then return 'taken' end
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 'changed' end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3], ARGV[4], ARGV[5])
return 'done'
