-- The tenant whose turn it is; it stands last from now on.
-- KEYS: turns   Returns the tenant, or nil where none has a turn.
local first = redis.call('ZRANGE', KEYS[1], 0, 0)[1]
if first then
  local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
  redis.call('ZADD', KEYS[1], string.format('%.0f', tonumber(last) + 1), first)
end
return first
