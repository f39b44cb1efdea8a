-- What stands before the scripts that take entries out of memories.

-- A version as text: numbers of Lua are doubles, whose own form has too few digits.
local function text_of(version) return string.format('%.0f', version) end

-- The id of the image that an entry was made of, as codec.py lays it out: its length from byte 7 on, itself from byte 37.
local function image_of(fields)
  for place = 1, #fields, 2 do
    local data = fields[place] == 'e' and fields[place + 1] or ''
    if #data > 40 then
      local length = data:byte(7) + 256 * data:byte(8)
      local id = data:sub(37, 36 + length)
      if id:match('^job_%x+%-%d+$') then return id end
    end
  end
end

-- Whether entries of a log may share a node. A node keeps the bytes of what was deleted while one of its entries lives, in
-- memory and in files.
local function shares_nodes(log)
  local facts, told = redis.call('XINFO', 'STREAM', log), {}
  for place = 1, #facts, 2 do told[facts[place]] = facts[place + 1] end
  return told['length'] ~= told['radix-tree-keys']
end

-- When an entry was made, in milliseconds: eight bytes from byte 17 on; 0 where nobody can tell.
local function time_of(fields)
  local at_ms = 0
  for place = 1, #fields, 2 do
    local data = fields[place] == 'e' and fields[place + 1] or ''
    if #data > 40 then
      for index = 24, 17, -1 do at_ms = 256 * at_ms + data:byte(index) end
    end
  end
  return at_ms
end

-- Notes in one range that nothing up to some version is left, for what was forgotten before too. `oldest` is the oldest
-- entry that is left.
local function note_oldest(forgotten, version, last, oldest)
  for _, range in ipairs(redis.call('ZRANGE', forgotten, 0, -1)) do
    local range_last = tonumber(range:match('%d+$'))
    if range_last < oldest then
      redis.call('ZREM', forgotten, range)
      last = math.max(last, range_last)
    end
  end
  redis.call('ZADD', forgotten, version, '1-' .. text_of(last))
end

-- The version of the oldest entry of a log; infinite where there is none.
local function oldest_of(log)
  local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  return oldest and tonumber(oldest[1]:match('^%d+')) or math.huge
end

-- Takes the oldest entries out that are beyond a memory's caps, 64 at most: an act with a version of its own. Their images
-- and jobs stay for their own time. Returns the version, or nothing.
local function keep_caps(meta, log, forgotten, now_ms)
  local most, age_s = unpack(redis.call('HMGET', meta, 'max_entries', 'max_age_s'))
  if not most and not age_s then return end
  local num_over = most and redis.call('XLEN', log) - tonumber(most) or 0
  local before_ms = age_s and tonumber(now_ms) - 1000 * tonumber(age_s) or 0
  local last
  for index, entry in ipairs(redis.call('XRANGE', log, '-', '+', 'COUNT', math.min(64, math.max(num_over, 0) + 8))) do
    if index > num_over and time_of(entry[2]) >= before_ms then break end
    redis.call('XDEL', log, entry[1])
    last = tonumber(entry[1]:match('^%d+'))
  end
  if not last then return end
  local version = text_of(redis.call('HINCRBY', meta, 'version', 1))
  note_oldest(forgotten, version, last, oldest_of(log))
  redis.call('HSET', meta, 'forget_version', version)
  return version
end
