-- Adds a record to a journal, and takes out what is too old and what is too much. The same again changes nothing.
-- KEYS: journal   ARGV: token of the write, record, most records, oldest id kept, ttl_ms   Returns the record's id.
for _, entry in ipairs(redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 64)) do
  if entry[2][2] == ARGV[1] then return entry[1] end
end
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '=', ARGV[3], '*', 'token', ARGV[1], 'record', ARGV[2])
redis.call('XTRIM', KEYS[1], 'MINID', '=', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return id
