"""What is to be told to webhooks: taken from tenants' outboxes, delivered or put off."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis

from app.domain.ids import TenantId
from app.domain.webhook import Webhook, WebhookEvent
from app.errors import CorruptRecord
from app.redis.errors import redis_errors
from app.redis.scripts import load_script
from app.webhooks import codec, keys
from app.webhooks.store import decode_all, waiting_keys

_LEASE_MS = 10_000
_TAKEN_MS = 30_000  # longer than an attempt may last
_TTL_MS = 1000 * keys.OUTBOX_TTL_S

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one webhook, and how often it was tried in vain."""

    webhook: Webhook
    entry_id: str
    event: WebhookEvent
    num_attempts: int

    @property
    def message_id(self) -> str:
        """The header `webhook-id`: the same at every attempt, and for nothing else."""
        return f"msg_{self.event.subject_id}_{self.webhook.webhook_id}"


@dataclass(frozen=True, slots=True)
class Taken:
    """What is due now; also how many events were dropped as too old, and what waits in all."""

    deliveries: tuple[Delivery, ...]
    num_dropped: int
    num_waiting: int
    oldest_at_ms: int | None


class Outbox:
    """Outboxes of all tenants, as one process sees them. All methods raise StoreUnavailable.

    A lease keeps processes apart, so that a webhook's bounds hold over all of them. Nothing depends on it: what was
    taken is hidden from everybody for a while.
    """

    def __init__(self, redis: Redis, *, clock_ms: Callable[[], int]) -> None:
        self._clock_ms = clock_ms
        self._token = secrets.token_hex(16)
        self._claim = load_script(redis, "app.webhooks", "claim")
        self._take = load_script(redis, "app.webhooks", "take")
        self._settle = load_script(redis, "app.webhooks", "settle")
        self._let_go = load_script(redis, "app.webhooks", "let_go")

    @redis_errors
    async def claim(self, tenant_id: TenantId) -> list[Webhook] | None:
        """Takes or extends the lease on a tenant: its webhooks, or None where another process has it."""
        slot_keys = [keys.lease_key(tenant_id), keys.webhooks_key(tenant_id), keys.outbox_key(tenant_id)]
        lowest_id = max(0, self._clock_ms() - _TTL_MS)
        found: Any = await self._claim(slot_keys, [self._token, _LEASE_MS, lowest_id])
        return None if found is None else decode_all(found)

    @redis_errors
    async def let_go(self, tenant_id: TenantId) -> None:
        """Ends the lease, so that another process can go on at once."""
        await self._let_go([keys.lease_key(tenant_id)], [self._token])

    @redis_errors
    async def take(self, webhook: Webhook, most: int) -> Taken:
        """What a webhook is to be told now, the longest due first."""
        tenant_id, webhook_id = webhook.tenant_id, webhook.webhook_id
        slot_keys = [
            keys.webhooks_key(tenant_id),
            keys.outbox_key(tenant_id),
            keys.cursors_key(tenant_id),
        ]
        now_ms = self._clock_ms()
        found: Any = await self._take(
            [*slot_keys, *waiting_keys(tenant_id, webhook_id)],
            [webhook_id, now_ms, now_ms - _TTL_MS, most, now_ms + _TAKEN_MS, _TTL_MS],
        )
        num_dropped, num_waiting, oldest, *entries = found
        deliveries = []
        for entry_id, num_attempts, *fields in entries:
            try:
                event = codec.decode_event(fields)
            except CorruptRecord as error:
                _log.error("webhook_event_unreadable", webhook_id=webhook_id, error=error.message)
                await self._end(webhook, entry_id.decode())
                continue
            deliveries.append(Delivery(webhook, entry_id.decode(), event, int(num_attempts)))
        return Taken(tuple(deliveries), num_dropped, num_waiting, int(float(oldest)) if oldest else None)

    @redis_errors
    async def end(self, delivery: Delivery) -> None:
        """Ends a delivery, heard or given up."""
        await self._end(delivery.webhook, delivery.entry_id)

    @redis_errors
    async def put_off(self, delivery: Delivery, due_ms: int) -> None:
        """Counts an attempt, and has the next one made at `due_ms`, unless the delivery has ended."""
        webhook = delivery.webhook
        await self._settle(
            waiting_keys(webhook.tenant_id, webhook.webhook_id),
            [delivery.entry_id, due_ms, delivery.num_attempts + 1, _TTL_MS],
        )

    async def _end(self, webhook: Webhook, entry_id: str) -> None:
        await self._settle(waiting_keys(webhook.tenant_id, webhook.webhook_id), [entry_id, "", 0, _TTL_MS])
