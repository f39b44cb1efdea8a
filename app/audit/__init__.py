"""The audit log: acts of administration and of forgetting."""
