-- Makes a running job queued again, if its fence holds. It stays released; a new stream entry must follow.
-- KEYS: job   ARGV: fence   Returns 1 or 0.
local state, fence = unpack(redis.call('HMGET', KEYS[1], 'state', 'fence'))
if state ~= 'running' or fence ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'state', 'queued')
redis.call('HDEL', KEYS[1], 'worker_id', 'started_at_ms', 'stream_id')
return 1
