"""`sparke doctor`: whether a set-up will do, looked at from outside. Nothing is changed but probe objects, which go."""
