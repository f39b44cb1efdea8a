-- Strikes a log off the remains whose prompts are out, unless more are to be taken out by now.
-- KEYS: meta, remains   ARGV: bare_version of the meta or '', member of the remains
if (redis.call('HGET', KEYS[1], 'bare_version') or '') == ARGV[1] then redis.call('ZREM', KEYS[2], ARGV[2]) end
