-- Counts lines that have ended, each once: what leaves the lines in flight is what is counted.
-- KEYS: batch, lease, flight   ARGV: token, then line and 'completed' or 'failed' in turn
-- Returns the numbers of lines counted now as completed and as failed, or {} where the lease is lost.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return {} end
local counted = {completed = 0, failed = 0}
for index = 2, #ARGV, 2 do
  if redis.call('SREM', KEYS[3], ARGV[index]) == 1 then
    counted[ARGV[index + 1]] = counted[ARGV[index + 1]] + 1
    redis.call('HINCRBY', KEYS[1], ARGV[index + 1], 1)
  end
end
return {counted.completed, counted.failed}
