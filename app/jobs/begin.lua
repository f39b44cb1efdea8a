-- Notes that a worker begins to run a job that it has started; counted once for each fence.
-- KEYS: job   ARGV: fence   Returns 'ours', 'cancelled': it shall end, or 'lost': the fence is.
local state, fence, begun_fence, cancel = unpack(redis.call('HMGET', KEYS[1], 'state', 'fence', 'begun_fence',
  'cancel_requested_at_ms'))
if state ~= 'running' or fence ~= ARGV[1] then return 'lost' end
if cancel then return 'cancelled' end
if begun_fence ~= fence then
  redis.call('HINCRBY', KEYS[1], 'attempts', 1)
  redis.call('HSET', KEYS[1], 'begun_fence', fence)
end
return 'ours'
