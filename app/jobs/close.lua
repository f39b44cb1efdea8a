-- Forgets an ended job outside its tenant's slot: acknowledges its stream entry, removes it from the open jobs.
-- KEYS: stream, open   ARGV: group, stream id or '', member
if ARGV[2] ~= '' then redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) end
redis.call('ZREM', KEYS[2], ARGV[3])
return 1
