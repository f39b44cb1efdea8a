-- Trims the stream below everything that is pending or not yet delivered. Never deletes in the middle.
-- KEYS: stream   ARGV: group   Returns the number of entries removed.
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local found = {}
  for index = 1, #group, 2 do found[group[index]] = group[index + 1] end
  if found['name'] == ARGV[1] then
    local oldest = redis.call('XPENDING', KEYS[1], ARGV[1])[2] or found['last-delivered-id']
    return redis.call('XTRIM', KEYS[1], 'MINID', '=', oldest)
  end
end
return 0
