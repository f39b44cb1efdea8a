"""What every request passes: who asks, for what, how much is left, and what is noted of it."""
