"""The HTTP edge: wire schemas, authentication, error bodies and routes. Nothing here reaches torch."""
