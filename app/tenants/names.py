"""Names and times to live of every Redis key of tenants.

A key is tagged with its tenant `{t:…}`, as all that belongs to it: one slot of a Redis Cluster. What tells which tenants
there are, and which are being deleted, is in others.
"""

from app.domain.ids import TenantId

TENANTS_KEY = "sparke:tenants"
"""Sorted set of tenants, all of score 0: from before their first key is made until they are deleted."""

DELETIONS_KEY = "sparke:tenant-deletions"
"""Hash of tenant → JSON: how a deletion stands, from when it was asked for until nothing of the tenant is left."""


def quotas_key(tenant_id: TenantId) -> str:
    """JSON: the overrides of a tenant's quotas. Lives for ever."""
    return f"sparke:{{t:{tenant_id}}}:quotas"


def rate_key(tenant_id: TenantId) -> str:
    """When a tenant's bucket of requests will be full again, in Unix milliseconds. Lives until then."""
    return f"sparke:{{t:{tenant_id}}}:rate"


def usage_key(tenant_id: TenantId) -> str:
    """Hash of `<day>:<what>` → number, what is requests, jobs, images and image_bytes. Lives `usage_ttl_s` after a use.

    Days of UTC are counted from 1970; those past `usage_ttl_s` are dropped as a new one begins.
    """
    return f"sparke:{{t:{tenant_id}}}:usage"
