-- Moves a batch from one state to the next. The same move again changes nothing.
-- KEYS: batch, lease   ARGV: token, state before, state after, now_ms, then fields and values
-- Returns the state after it, whichever that is, or '' where the lease is lost.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return '' end
local state = redis.call('HGET', KEYS[1], 'state')
if state == ARGV[2] then
  state = ARGV[3]
  redis.call('HSET', KEYS[1], 'state', state, 'at:' .. state, ARGV[4], unpack(ARGV, 5))
end
return state or ''
