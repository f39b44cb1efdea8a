-- Says how far a running job is.
-- KEYS: job, events   ARGV: fence, step, number of steps, channel of events, message   Returns 1, or 0: the fence is lost.
local state, fence = unpack(redis.call('HMGET', KEYS[1], 'state', 'fence'))
if state ~= 'running' or fence ~= ARGV[1] then return 0 end
tell(KEYS[2], 'type', 'progress', 'step', ARGV[2], 'num_steps', ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return 1
