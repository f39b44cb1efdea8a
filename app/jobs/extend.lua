-- Extends a worker's leases: the idle time of each entry that it still has begins anew. Nobody else's entry is touched.
-- KEYS: stream   ARGV: group, consumer, stream id, stream id, ...   Returns the ids of the entries that it has no more.
local lost = {}
for index = 3, #ARGV do
  local id = ARGV[index]
  if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) == 1 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'JUSTID')
  else
    lost[#lost + 1] = id
  end
end
return lost
