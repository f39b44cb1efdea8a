-- The key of a memory's snapshots, made now if there is none. Every act of forgetting takes it along, but for caps.
-- KEYS: meta   ARGV: version of the last act of forgetting that the snapshot has followed, a new key
-- Returns the key, or nothing where something was forgotten since.
if (redis.call('HGET', KEYS[1], 'forget_version') or '0') ~= ARGV[1] then return false end
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
redis.call('HSETNX', KEYS[1], 'snapshot_key', ARGV[2])
return redis.call('HGET', KEYS[1], 'snapshot_key')
