"""Metrics and logs. Neither ever carries a prompt, a key, or (in metrics) a tenant."""
