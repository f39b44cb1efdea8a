-- Removes a webhook with all that waits for it.
-- KEYS: webhooks, cursors, due, waiting, attempts   ARGV: id   Returns 1, or 0 where there was none.
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[3], KEYS[4], KEYS[5])
return redis.call('HDEL', KEYS[1], ARGV[1])
