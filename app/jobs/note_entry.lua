-- Notes on a queued job which stream entry stands for it, so the sweep knows that the entry was written.
-- KEYS: job   ARGV: stream id
if redis.call('HGET', KEYS[1], 'state') == 'queued' then redis.call('HSET', KEYS[1], 'stream_id', ARGV[1]) end
return 1
