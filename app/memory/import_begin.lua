-- Begins an import, unless its memory has had something or the tenant has as many unfinished ones, or memories, as it may.
-- KEYS: import, imports, memory meta, memory log, memory index
-- ARGV: import id, record JSON, offset, now_ms, ttl_ms, most imports, name in the index, most memories
-- Returns 'begun', 'there': an import of that id is, 'exists': the memory has versions already, 'frozen': it takes nothing,
-- 'crowded': there are as many memories, or 'full'. A second call answers 'begun' again.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.call('HGET', KEYS[1], 'record') == ARGV[2] and 'begun' or 'there'
end
if tonumber(redis.call('HGET', KEYS[3], 'version') or 0) > 0 or redis.call('XLEN', KEYS[4]) > 0 then return 'exists' end
if redis.call('HEXISTS', KEYS[3], 'frozen') == 1 then return 'frozen' end
if redis.call('SISMEMBER', KEYS[5], ARGV[7]) == 0 and redis.call('SCARD', KEYS[5]) >= tonumber(ARGV[8]) then
  return 'crowded'
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[4])
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[6]) then return 'full' end
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'offset', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('ZADD', KEYS[2], tonumber(ARGV[4]) + tonumber(ARGV[5]), ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return 'begun'
