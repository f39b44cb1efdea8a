"""A tenant's memory in Redis: an append-only log of entries, ordered and versioned."""
