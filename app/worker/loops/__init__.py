"""Which jobs are taken, and which run together."""
