-- Forgets an ended job as `close` does, and writes its dead letter: once, with the acknowledgement of its entry.
-- KEYS: stream, open, dead, turns, ...
-- ARGV: group, stream id, member, tenant, channel, model, max_letters, field, value, field, value, ...
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[7], '*', unpack(ARGV, 8))
end
redis.call('ZREM', KEYS[2], ARGV[3])
give_turns(KEYS, 4, ARGV, 4)
return 1
