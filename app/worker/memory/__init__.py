"""Tenants' memories as a worker has them: copies on the host, snapshots, what is chosen of them."""
