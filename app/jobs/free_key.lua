-- Frees an idempotency key whose job ended for want of time or of a worker: nothing was made, and to send it again is right.
-- KEYS: that job, idempotency   ARGV: its id, code of the failure for want of a worker
-- Returns 0 where the key stands for that job still, else 1: it is free, or whoever came first has it for another job by now.
if redis.call('HGET', KEYS[2], 'job_id') ~= ARGV[1] then return 1 end
local state, failure = unpack(redis.call('HMGET', KEYS[1], 'state', 'failure'))
local has_no_worker = state == 'failed' and cjson.decode(failure).code == ARGV[2]
if state ~= 'expired' and not has_no_worker then return 0 end
redis.call('DEL', KEYS[2])
return 1
