-- Says how far a running job is, and how it stands.
-- KEYS: job, events   ARGV: fence, step, number of steps, channel of events, message
-- Returns 'ours', 'cancelled': it shall end, or 'lost': the fence is. Only in the first case anything is told.
local state, fence, cancel = unpack(redis.call('HMGET', KEYS[1], 'state', 'fence', 'cancel_requested_at_ms'))
if state ~= 'running' or fence ~= ARGV[1] then return 'lost' end
if cancel then return 'cancelled' end
tell(KEYS[2], 'type', 'progress', 'step', ARGV[2], 'num_steps', ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return 'ours'
