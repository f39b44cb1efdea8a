"""Names and times to live of every Redis key of webhooks.

A key is tagged with its tenant `{t:…}`: one slot of a Redis Cluster. Only the set of tenants is in another.
"""

from app.domain.ids import TenantId, WebhookId

TENANTS_KEY = "sparke:webhook-tenants"
"""Sorted set of tenants by when one last made a webhook: each from before it has one until it has none."""

TELL = "app.webhooks/tell"  # the script that stands before those that write into outboxes
OUTBOX_TTL_S = 2 * 86_400  # how long anybody tries to tell of an event; as in tell.lua
MAX_OUTBOX = 20_000  # events of a tenant that are kept, about; as in tell.lua


def webhooks_key(tenant_id: TenantId) -> str:
    """Hash of webhook id → JSON with its secret. Bounded by MAX_WEBHOOKS; lives for ever."""
    return f"sparke:{{t:{tenant_id}}}:webhooks"


def outbox_key(tenant_id: TenantId) -> str:
    """Stream of events, written by the scripts in which they happen, where the tenant has webhooks.

    Bounded by MAX_OUTBOX; an entry lives OUTBOX_TTL_S.
    """
    return f"sparke:{{t:{tenant_id}}}:outbox"


def cursors_key(tenant_id: TenantId) -> str:
    """Hash of webhook id → the last entry of the outbox that is in its `due` or was. Lives for ever."""
    return f"sparke:{{t:{tenant_id}}}:webhook-cursors"


def lease_key(tenant_id: TenantId) -> str:
    """The token of the process that delivers for the tenant now. Lives one lease, and is extended."""
    return f"sparke:{{t:{tenant_id}}}:webhook-lease"


def due_key(tenant_id: TenantId, webhook_id: WebhookId) -> str:
    """Sorted set of outbox ids by when to try next. Lives OUTBOX_TTL_S after the last try."""
    return f"sparke:{{t:{tenant_id}}}:webhook:{webhook_id}:due"


def waiting_key(tenant_id: TenantId, webhook_id: WebhookId) -> str:
    """Sorted set of the same ids by when the event happened. Lives as `due`."""
    return f"sparke:{{t:{tenant_id}}}:webhook:{webhook_id}:waiting"


def attempts_key(tenant_id: TenantId, webhook_id: WebhookId) -> str:
    """Hash of the same ids → how often was tried in vain. Lives as `due`."""
    return f"sparke:{{t:{tenant_id}}}:webhook:{webhook_id}:attempts"
