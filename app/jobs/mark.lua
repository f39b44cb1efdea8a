-- Gives a tenant a turn after all others in each lane that is given, unless it has one, and wakes the model's workers.
-- KEYS: turns, turns, ...   ARGV: tenant, channel, model
give_turns(KEYS, 1, ARGV, 1)
return 1
