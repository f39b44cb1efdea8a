-- Asks for the end of a batch whose lines still run. KEYS: batch   ARGV: now_ms
-- Returns the state after it, or '' where the batch is unknown. A second call changes nothing.
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'validating' or state == 'in_progress' then
  state = 'cancelling'
  redis.call('HSET', KEYS[1], 'state', state, 'outcome', 'cancelled', 'at:cancelling', ARGV[1])
end
return state or ''
