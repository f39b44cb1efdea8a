-- Makes a memory that holds nothing, unless there is one of its name, or the tenant has as many as it may. Under the name of
-- one that was deleted it goes on with its versions.
-- KEYS: meta, index   ARGV: name in the index, token of the call, now_ms, most memories, field, value, field, value, ...
-- Returns 'made', 'exists' or 'full'. A call that is repeated answers as the first did.
if redis.call('HGET', KEYS[1], 'make_token') == ARGV[2] then return 'made' end
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 then return 'exists' end
if redis.call('SCARD', KEYS[2]) >= tonumber(ARGV[4]) then return 'full' end
redis.call('HSET', KEYS[1], 'created_at_ms', ARGV[3], 'make_token', ARGV[2])
for place = 5, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[place], ARGV[place + 1]) end
redis.call('HDEL', KEYS[1], 'renamed_to', 'renamed_version')
redis.call('PERSIST', KEYS[1])
redis.call('SADD', KEYS[2], ARGV[1])
return 'made'
