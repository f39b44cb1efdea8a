-- Adds a block of an archive to what an import has, if it goes on from where that is.
-- KEYS: import, staging log, imports
-- ARGV: import id, offset before, offset after, record JSON, now_ms, ttl_ms, version, entry, version, entry, ...
-- Returns 'written', 'gone': there is no such import any more, or 'moved': it is elsewhere. A second call changes nothing.
local offset = redis.call('HGET', KEYS[1], 'offset')
if not offset then return 'gone' end
if offset == ARGV[3] then return 'written' end
if offset ~= ARGV[2] then return 'moved' end
for place = 7, #ARGV, 2 do redis.call('XADD', KEYS[2], ARGV[place] .. '-0', 'e', ARGV[place + 1]) end
redis.call('HSET', KEYS[1], 'offset', ARGV[3], 'record', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('PEXPIRE', KEYS[2], ARGV[6])
redis.call('ZADD', KEYS[3], tonumber(ARGV[5]) + tonumber(ARGV[6]), ARGV[1])
redis.call('PEXPIRE', KEYS[3], ARGV[6])
return 'written'
