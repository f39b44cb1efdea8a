-- What stands before the scripts that make a memory of entries: whether the tenant may have so many.

-- KEYS from `key` on are the logs of all memories of the tenant. ARGV from `place` on: the most entries that they may hold
-- together, or '' for any number, and their names in the index. Returns 'no room' where `num_more` would be too many, 'others'
-- where the tenant's memories are not these any more, and nothing where there is room.
local function lacks_room(index, num_more, key, place)
  local most = tonumber(ARGV[place])
  if not most then return end
  if redis.call('SCARD', index) ~= #KEYS - key + 1 then return 'others' end
  local num_entries = num_more
  for offset = 0, #KEYS - key do
    if redis.call('SISMEMBER', index, ARGV[place + 1 + offset]) == 0 then return 'others' end
    num_entries = num_entries + redis.call('XLEN', KEYS[key + offset])
  end
  if num_entries > most then return 'no room' end
end
