-- What stands before every script of a job's life.
local BATCH_FROM = 1e13 -- places of the batch lane in a tenant's sorted sets begin here, see keys.py

-- Which lanes have jobs waiting: 1 interactive, 2 batch, 3 both, 0 none.
local function lanes_waiting(waiting)
  local first = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')[2]
  if not first then return 0 end
  local last = redis.call('ZRANGE', waiting, -1, -1, 'WITHSCORES')[2]
  return (tonumber(first) < BATCH_FROM and 1 or 0) + (tonumber(last) >= BATCH_FROM and 2 or 0)
end

-- Says what happened to a job in its stream of events, where it has one: a batch's lines and questions have none.
local function tell(events, ...)
  if redis.call('EXISTS', events) == 1 then redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', ...) end
end

-- Settles what an ended job was charged: without images it gives those of its day back, with images it notes their bytes on
-- the day on which they were made. A job ends once, so this is done once.
local function settle(job, usage, state, at_ms)
  local charged, result = unpack(redis.call('HMGET', job, 'charged', 'result'))
  if not charged then return end
  local day, num_images = string.match(charged, '^(%d+):(%d+)$')
  if state ~= 'succeeded' then
    if redis.call('HEXISTS', usage, day .. ':images') == 1 then
      redis.call('HINCRBY', usage, day .. ':images', -num_images)
    end
    return
  end
  local num_bytes = 0
  for _, image in ipairs(cjson.decode(result).images) do num_bytes = num_bytes + image.size_bytes end
  local today = string.format('%.0f', math.floor(tonumber(at_ms) / 86400000))
  redis.call('HINCRBY', usage, today .. ':image_bytes', string.format('%.0f', num_bytes))
end

-- The same of its end, after which the events live as long as the record; and an entry in the tenant's outbox where it
-- has webhooks, but not of a batch's lines and of questions. `keys` begins as KEYS of the scripts that end jobs: job, waiting, released,
-- events, webhooks, outbox, usage. `name` is that of the call that ended it: who repeats it shall know that it was theirs.
local function tell_end(keys, job_id, ttl_ms, state, name)
  redis.call('HSET', keys[1], 'ended_by', name)
  tell(keys[4], 'type', state)
  redis.call('PEXPIRE', keys[4], ttl_ms)
  local json, lane, at_ms, quiet = unpack(redis.call('HMGET', keys[1], 'job', 'lane', 'finished_at_ms', 'quiet'))
  if lane ~= 'batch' and not quiet then tell_webhooks(keys[5], keys[6], 'job.' .. state, job_id, at_ms, json) end
  settle(keys[1], keys[7], state, at_ms)
end

-- 1 where the job ended by a call of this name: by this very one, or by one before it whose answer was lost. Else 0.
local function is_ended_by(job, name)
  return redis.call('HGET', job, 'ended_by') == name and 1 or 0
end

-- Gives a tenant a turn after all others in each lane whose turns are in `keys` from `first` on, unless it has one, and
-- wakes the model's workers. `args` has tenant, channel and model from `from` on.
local function give_turns(keys, first, args, from)
  for index = first, #keys do
    if not redis.call('ZSCORE', keys[index], args[from]) then
      local last = redis.call('ZRANGE', keys[index], -1, -1, 'WITHSCORES')[2]
      redis.call('ZADD', keys[index], string.format('%.0f', tonumber(last or 0) + 1), args[from])
    end
  end
  if first <= #keys then redis.call('PUBLISH', args[from + 1], args[from + 2]) end
end
