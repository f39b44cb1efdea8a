-- Forgets an ended job outside its tenant's slot: acknowledges its stream entry, removes it from the open jobs, and gives
-- its tenant a turn in each lane in which it has jobs waiting.
-- KEYS: stream, open, turns, ...   ARGV: group, stream id or '', member, tenant, channel, model
if ARGV[2] ~= '' then redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) end
redis.call('ZREM', KEYS[2], ARGV[3])
give_turns(KEYS, 3, ARGV, 4)
return 1
