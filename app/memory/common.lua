-- What stands before the scripts that forget.

-- A version as text: numbers of Lua are doubles, whose own form has too few digits.
local function text_of(version) return string.format('%.0f', version) end

-- The id of the image that an entry was made of, as codec.py lays it out: its length from byte 7 on, itself from byte 33.
local function image_of(fields)
  for place = 1, #fields, 2 do
    local data = fields[place] == 'e' and fields[place + 1] or ''
    if #data > 36 then
      local length = data:byte(7) + 256 * data:byte(8)
      local id = data:sub(33, 32 + length)
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
