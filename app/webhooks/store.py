"""Which webhooks there are: make one, list them, change its secret, disable, enable and delete it."""

import base64
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog
from redis.asyncio import Redis

from app.domain.ids import TenantId, WebhookId, make_webhook_id
from app.domain.webhook import MAX_WEBHOOKS, Webhook
from app.errors import CorruptRecord, NotFound, TooManyWebhooks
from app.redis.errors import redis_errors
from app.redis.replicas import Replicas
from app.redis.scripts import load_script
from app.webhooks import codec, keys

_SECRET_BYTES = 32
_MAKING_MS = 3_600_000  # a tenant that was listed so lately may be making its first webhook

_log = structlog.get_logger(__name__)


def now_ms() -> int:
    """Unix milliseconds."""
    return int(time.time() * 1000)


class WebhookStore:
    """Webhooks of all tenants. All methods raise StoreUnavailable where Redis does not answer.

    Whatever changes one waits for replicas where those are asked for: NotReplicated, and it may yet stand.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        clock_ms: Callable[[], int] = now_ms,
        randomness: Callable[[int], bytes] = secrets.token_bytes,
        replicas: Replicas | None = None,
    ) -> None:
        self._redis = redis
        self._replicas = replicas or Replicas(redis)
        self._clock_ms = clock_ms
        self._randomness = randomness
        self._add = load_script(redis, "app.webhooks", "add")
        self._put = load_script(redis, "app.webhooks", "put")
        self._remove = load_script(redis, "app.webhooks", "remove")
        self._forget = load_script(redis, "app.webhooks", "forget")

    @redis_errors
    async def create(self, tenant_id: TenantId, url: str) -> Webhook:
        """A new webhook, which is told of all that happens from now on. Raises TooManyWebhooks.

        The URL is one that `Targets` has checked. The tenant is listed first, so a crash in between strands nothing.
        """
        at_ms = self._clock_ms()
        webhook_id = make_webhook_id(at_ms, self._randomness(8))
        webhook = Webhook(tenant_id, webhook_id, url, at_ms, self._make_secret())
        await self._redis.zadd(keys.TENANTS_KEY, {tenant_id: at_ms})
        slot_keys = [
            keys.webhooks_key(tenant_id),
            keys.cursors_key(tenant_id),
            keys.outbox_key(tenant_id),
        ]
        record = codec.encode_webhook(webhook)
        added = await self._replicas.run(self._add, slot_keys, [webhook.webhook_id, record, MAX_WEBHOOKS])
        if not added.checked():
            raise TooManyWebhooks(f"there are {MAX_WEBHOOKS} webhooks, which is the most; delete one first")
        return webhook

    @redis_errors
    async def get(self, tenant_id: TenantId, webhook_id: WebhookId) -> Webhook:
        """What is known of a webhook. Raises NotFound and CorruptRecord."""
        data: Any = await self._redis.hget(keys.webhooks_key(tenant_id), webhook_id)
        if data is None:
            raise _no_such(webhook_id)
        return codec.decode_webhook(data)

    @redis_errors
    async def list_webhooks(self, tenant_id: TenantId) -> list[Webhook]:
        """A tenant's webhooks, oldest first. One that cannot be read is left out and logged."""
        found: Any = await self._redis.hvals(keys.webhooks_key(tenant_id))
        return sorted(decode_all(found), key=lambda webhook: webhook.webhook_id)

    @redis_errors
    async def list_tenants(self) -> list[TenantId]:
        """Every tenant that has webhooks, and some that had."""
        found: Any = await self._redis.zrange(keys.TENANTS_KEY, 0, -1)
        return [TenantId(tenant_id.decode()) for tenant_id in found]

    @redis_errors
    async def forget(self, tenant_id: TenantId) -> None:
        """Lists a tenant without webhooks no more."""
        await self._forget([keys.TENANTS_KEY], [tenant_id, self._clock_ms() - _MAKING_MS])

    async def disable(self, tenant_id: TenantId, webhook_id: WebhookId) -> None:
        """Tells a webhook nothing more, not even what waits for it. Raises NotFound and CorruptRecord."""
        at_ms = self._clock_ms()
        await self._change(
            tenant_id, webhook_id, lambda found: replace(found, disabled_at_ms=at_ms), anew=True
        )

    async def enable(self, tenant_id: TenantId, webhook_id: WebhookId) -> None:
        """Tells a disabled webhook of what happens from now on. Raises NotFound and CorruptRecord."""
        if (await self.get(tenant_id, webhook_id)).disabled_at_ms is not None:
            await self._change(
                tenant_id, webhook_id, lambda found: replace(found, disabled_at_ms=None), anew=True
            )

    async def rotate(self, tenant_id: TenantId, webhook_id: WebhookId, *, grace_s: int) -> Webhook:
        """Gives a webhook a new secret; the old one signs too for `grace_s`. Raises NotFound and CorruptRecord."""
        at_ms, secret = self._clock_ms(), self._make_secret()
        return await self._change(
            tenant_id, webhook_id, lambda found: found.rotated(secret, at_ms, grace_s=grace_s), anew=False
        )

    @redis_errors
    async def delete(self, tenant_id: TenantId, webhook_id: WebhookId) -> None:
        """Removes a webhook and what waits for it. Raises NotFound."""
        slot_keys = [keys.webhooks_key(tenant_id), keys.cursors_key(tenant_id)]
        slot_keys += waiting_keys(tenant_id, webhook_id)
        removed = await self._replicas.run(self._remove, slot_keys, [webhook_id])
        if not removed.checked():
            raise _no_such(webhook_id)

    @redis_errors
    async def _change(
        self, tenant_id: TenantId, webhook_id: WebhookId, change: Callable[[Webhook], Webhook], *, anew: bool
    ) -> Webhook:
        """Writes the record that `change` makes of it; of one that was changed meanwhile it makes another."""
        slot_keys = [
            keys.webhooks_key(tenant_id),
            keys.cursors_key(tenant_id),
            keys.outbox_key(tenant_id),
            *waiting_keys(tenant_id, webhook_id),
        ]
        while True:
            before: Any = await self._redis.hget(slot_keys[0], webhook_id)
            if before is None:
                raise _no_such(webhook_id)
            webhook = change(codec.decode_webhook(before))
            arguments = [webhook_id, before, codec.encode_webhook(webhook), "1" if anew else ""]
            outcome = (await self._replicas.run(self._put, slot_keys, arguments)).checked()
            if outcome == 0:
                raise _no_such(webhook_id)
            if outcome == 1:
                return webhook

    def _make_secret(self) -> str:
        return "whsec_" + base64.b64encode(self._randomness(_SECRET_BYTES)).decode()


def waiting_keys(tenant_id: TenantId, webhook_id: WebhookId) -> list[str]:
    """The keys of what waits for a webhook: due, waiting, attempts."""
    return [make(tenant_id, webhook_id) for make in (keys.due_key, keys.waiting_key, keys.attempts_key)]


def decode_all(records: list[bytes]) -> list[Webhook]:
    """The webhooks of some records. One that cannot be read is left out and logged: it must not hide the others."""
    webhooks = []
    for record in records:
        try:
            webhooks.append(codec.decode_webhook(record))
        except CorruptRecord as error:
            _log.warning("webhook_skipped", error=error.message)
    return webhooks


def _no_such(webhook_id: str) -> NotFound:
    return NotFound(f"there is no webhook {webhook_id[:80]!r}")
