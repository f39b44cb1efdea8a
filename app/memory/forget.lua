-- Forgets some entries of a memory. The act takes a version of its own, so that a version which is read tells on which side
-- of it the reader was; what was forgotten is noted by ranges of versions, each at the version of its act.
-- KEYS: meta, log, forgotten, remains
-- ARGV: token of the call, most ranges kept, member of the remains for a log to be written anew, version, version, ...
--   ascending
-- Returns {number forgotten, version after it}. A call that is repeated answers as the first did.
local token, before = unpack(redis.call('HMGET', KEYS[1], 'forget_token', 'forget_count'))
if token == ARGV[1] then return {tonumber(before), redis.call('HGET', KEYS[1], 'forget_version')} end
if redis.call('EXISTS', KEYS[2]) == 0 then return {0, redis.call('HGET', KEYS[1], 'version') or '0'} end
local is_shared, gone = shares_nodes(KEYS[2]), {}
for place = 4, #ARGV do
  local id = ARGV[place] .. '-0'
  local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
  if entry then
    local image = image_of(entry[2])
    if image then redis.call('ZADD', KEYS[4], 0, 'image:' .. image) end
    redis.call('XDEL', KEYS[2], id)
    gone[#gone + 1] = tonumber(ARGV[place])
  end
end
if #gone == 0 then return {0, redis.call('HGET', KEYS[1], 'version') or '0'} end
if is_shared then redis.call('ZADD', KEYS[4], 0, ARGV[3]) end
local version = text_of(redis.call('HINCRBY', KEYS[1], 'version', 1))

local function note(first, last) redis.call('ZADD', KEYS[3], version, text_of(first) .. '-' .. text_of(last)) end
local oldest, place = oldest_of(KEYS[2]), 1
while gone[place] and gone[place] < oldest do place = place + 1 end
if place > 1 then note_oldest(KEYS[3], version, gone[place - 1], oldest) end
local first = gone[place]
while gone[place] do
  if gone[place + 1] ~= gone[place] + 1 then
    note(first, gone[place])
    first = gone[place + 1]
  end
  place = place + 1
end

local too_many = redis.call('ZCARD', KEYS[3]) - tonumber(ARGV[2])
if too_many > 0 then -- the oldest acts are told as one: who has not read them begins anew
  local floor, floor_first = unpack(redis.call('HMGET', KEYS[1], 'floor_version', 'floor_first'))
  floor, floor_first = tonumber(floor or 0), tonumber(floor_first or version)
  local popped = redis.call('ZPOPMIN', KEYS[3], too_many)
  for index = 1, #popped, 2 do
    floor = math.max(floor, tonumber(popped[index + 1]))
    floor_first = math.min(floor_first, tonumber(popped[index]:match('^%d+')))
  end
  redis.call('HSET', KEYS[1], 'floor_version', text_of(floor), 'floor_first', text_of(floor_first))
end
redis.call('HSET', KEYS[1], 'forget_version', version, 'forget_token', ARGV[1], 'forget_count', #gone)
redis.call('HDEL', KEYS[1], 'snapshot_key')
return {#gone, version}
