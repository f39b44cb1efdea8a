"""Webhooks: which there are, what is to be told to each, and how it is told, signed and again until it is heard."""
