-- Notes that lines which had been refused have become jobs. The same call again changes nothing.
-- KEYS: batch, lease, flight, refused   ARGV: token, then lines
-- Returns the batch's state, or '' where the lease is lost.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return '' end
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'in_progress' then return state or '' end
for index = 2, #ARGV do
  if redis.call('HDEL', KEYS[4], ARGV[index]) == 1 then redis.call('SADD', KEYS[3], ARGV[index]) end
end
return state
