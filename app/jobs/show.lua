-- Tells of a preview of a running job's image.
-- KEYS: job, events   ARGV: fence, image's index, preview's number, storage key, channel of events, message
-- Returns 1, or 0 where the fence is lost or the job has ended: nothing is told then.
local state, fence = unpack(redis.call('HMGET', KEYS[1], 'state', 'fence'))
if state ~= 'running' or fence ~= ARGV[1] then return 0 end
tell(KEYS[2], 'type', 'preview', 'image', ARGV[2], 'number', ARGV[3], 'key', ARGV[4])
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
