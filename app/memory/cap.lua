-- Takes some of the oldest entries out that are beyond a memory's caps.
-- KEYS: meta, log, forgotten   ARGV: now_ms   Returns 1 where any were, so that there may be more, else 0.
return keep_caps(KEYS[1], KEYS[2], KEYS[3], ARGV[1]) and 1 or 0
