-- Takes what a worker shall do next: an entry of the stream that nobody was given yet, else a tenant's turn; who has had
-- its turn stands last. Before that it enters a job that was released, and ends a turn whose tenant has no more to release.
-- KEYS: stream, turns of the lane that is asked first, turns of the other
-- ARGV: group, consumer, [tenant, job id or '', its lane's place among KEYS where its turn is over, else '']
-- Returns {'entry', id, fields, id of the entry that was made or ''}, {'turn', place of its lane among KEYS, tenant}, or
-- {'nothing'}.
local made = ''
if ARGV[3] then
  if ARGV[4] ~= '' then made = redis.call('XADD', KEYS[1], '*', 't', ARGV[3], 'j', ARGV[4]) end
  if ARGV[5] ~= '' then redis.call('ZREM', KEYS[tonumber(ARGV[5])], ARGV[3]) end
end
local read = {'XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', 1, 'STREAMS', KEYS[1], '>'}
local found = redis.pcall(unpack(read))
if found and found.err and found.err:find('NOGROUP') then
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
  found = redis.call(unpack(read))
end
if found and found.err then return found end
if found and found[1] then
  local entry = found[1][2][1]
  return {'entry', entry[1], entry[2], made}
end
for place = 2, 3 do
  local first = redis.call('ZRANGE', KEYS[place], 0, 0)[1]
  if first then
    local last = redis.call('ZRANGE', KEYS[place], -1, -1, 'WITHSCORES')[2]
    redis.call('ZADD', KEYS[place], string.format('%.0f', tonumber(last) + 1), first)
    return {'turn', place, first}
  end
end
return {'nothing'}
