-- What stands before every script that ends what a tenant's webhooks are told of.
local MAX_OUTBOX, OUTBOX_TTL_MS = 20000, 172800000 -- as in keys.py

-- Writes an event into the outbox, where the tenant has webhooks. `json` is what was asked for: its member `metadata` is
-- told too, and where it stands in a trace is kept for the attempts, without the texts of a `tracestate`. What cannot be
-- read of it hinders no end.
local function tell_webhooks(webhooks, outbox, event, id, at_ms, json)
  if redis.call('EXISTS', webhooks) == 0 then return end
  local is_read, asked = pcall(cjson.decode, json)
  local metadata = is_read and type(asked) == 'table' and type(asked.metadata) == 'table' and asked.metadata or {}
  local origin = is_read and type(asked) == 'table' and type(asked.origin) == 'table' and asked.origin or {}
  local trace = type(origin.trace) == 'table' and {traceparent = origin.trace.traceparent} or {}
  redis.call('XADD', outbox, 'MAXLEN', '~', MAX_OUTBOX, '*', 'type', event, 'id', id, 'at_ms', at_ms,
    'metadata', cjson.encode(metadata), 'trace', cjson.encode(trace))
  redis.call('PEXPIRE', outbox, OUTBOX_TTL_MS)
end
