"""Redis: connections, the embedded server, scripts and notifications. Redis 6.2 commands only."""
