-- What stands before every script of a job's life.
local BATCH_FROM = 1e13 -- places of the batch lane in a tenant's sorted sets begin here, see keys.py

-- Which lanes have jobs waiting: 1 interactive, 2 batch, 3 both, 0 none.
local function lanes_waiting(waiting)
  local first = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')[2]
  if not first then return 0 end
  local last = redis.call('ZRANGE', waiting, -1, -1, 'WITHSCORES')[2]
  return (tonumber(first) < BATCH_FROM and 1 or 0) + (tonumber(last) >= BATCH_FROM and 2 or 0)
end

-- Says what happened to a job in its stream of events, where it has one: a batch's lines have none.
local function tell(events, ...)
  if redis.call('EXISTS', events) == 1 then redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', ...) end
end

-- The same of its end, after which the events live as long as the record.
local function tell_end(events, ttl_ms, state)
  tell(events, 'type', state)
  redis.call('PEXPIRE', events, ttl_ms)
end
