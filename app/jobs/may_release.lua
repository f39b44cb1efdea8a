-- Whether `release` would find a job now.
-- KEYS: waiting, released   ARGV: max_released or '', lowest score of the lane, score below which it ends   Returns 1 or 0.
local lowest, beyond = ARGV[2], '(' .. ARGV[3]
if redis.call('ZCOUNT', KEYS[1], lowest, beyond) > 0
  and redis.call('ZCOUNT', KEYS[2], lowest, beyond) < (tonumber(ARGV[1]) or math.huge) then return 1 end
return 0
