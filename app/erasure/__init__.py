"""Deleting tenants: looks for whatever carries a tenant's hash tag or lies in its folders, until nothing is left."""
