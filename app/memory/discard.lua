-- Notes what is left of the images of some entries of a discarded log, and removes those entries, and at last the log.
-- KEYS: discarded log, remains   ARGV: most entries, member of the remains for the log
-- Returns the number of entries left.
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[1])) do
  local image = image_of(entry[2])
  if image then redis.call('ZADD', KEYS[2], 0, 'image:' .. image) end
  redis.call('XDEL', KEYS[1], entry[1])
end
local num_left = redis.call('XLEN', KEYS[1])
if num_left == 0 then
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[2])
end
return num_left
