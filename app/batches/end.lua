-- Ends a batch, notes under which lease, and begins its record's time to live. The same end again changes nothing.
-- KEYS: batch, lease, open ids, expiries, flight, bad, refused, webhooks, outbox
-- ARGV: token, state before, state after, now_ms, id, ttl_ms, then fields and values
-- Returns the state after it, whichever that is, or '' where the lease is lost.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return '' end
local state = redis.call('HGET', KEYS[1], 'state')
if state == ARGV[2] then
  state = ARGV[3]
  redis.call('HSET', KEYS[1], 'state', state, 'at:' .. state, ARGV[4], 'ended_by', ARGV[1], unpack(ARGV, 7))
  redis.call('PEXPIRE', KEYS[1], ARGV[6])
  redis.call('SREM', KEYS[3], ARGV[5])
  redis.call('ZADD', KEYS[4], tonumber(ARGV[4]) + tonumber(ARGV[6]), ARGV[5])
  redis.call('DEL', KEYS[5], KEYS[6], KEYS[7])
  tell_webhooks(KEYS[8], KEYS[9], 'batch.' .. state, ARGV[5], ARGV[4], redis.call('HGET', KEYS[1], 'batch'))
end
return state or ''
