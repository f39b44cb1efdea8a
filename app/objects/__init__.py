"""Bytes in an object store, for whatever kind of thing they are."""
