"""Tenants' files: what is known of them in Redis, their bytes in the object store, and the sweep of what is left over.

Redis is the truth: a file is there from when its record is written until the record is gone.
"""
