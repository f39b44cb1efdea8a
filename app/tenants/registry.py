"""Which tenants there are, and which are being deleted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from redis.asyncio import Redis

from app.domain.ids import DEFAULT_TENANT, TenantId
from app.errors import NotFound
from app.redis.errors import redis_errors
from app.redis.records import decode
from app.redis.replicas import Replicas
from app.tenants.names import DELETIONS_KEY, TENANTS_KEY


@dataclass(frozen=True, slots=True)
class Deletion:
    """How the deletion of a tenant stands. Times are Unix milliseconds.

    `found_at_ms` is when something of the tenant was seen last, before the first look when it was asked for;
    `looked_at_ms` when a look ended last, None before the first one.
    """

    requested_at_ms: int
    found_at_ms: int
    looked_at_ms: int | None = None
    num_keys: int = 0
    num_objects: int = 0

    @property
    def is_empty(self) -> bool:
        """True where the last look found nothing."""
        return self.looked_at_ms is not None and self.looked_at_ms > self.found_at_ms


@dataclass(frozen=True, slots=True)
class TenantPage:
    """Some tenants in the order of their names, and whether there are more."""

    tenants: tuple[TenantId, ...]
    has_more: bool


_DELETION = TypeAdapter(Deletion)


class TenantRegistry:
    """All tenants: from before their first key is made until their deletion has ended. `default` is always there.

    All methods raise StoreUnavailable where Redis does not answer. A deletion waits for replicas where those are asked
    for: NotReplicated, and it may yet stand.
    """

    def __init__(
        self, redis: Redis, *, clock_ms: Callable[[], int], replicas: Replicas | None = None
    ) -> None:
        self._redis = redis
        self._replicas = replicas or Replicas(redis)
        self._clock_ms = clock_ms

    @redis_errors
    async def add(self, tenant_ids: Iterable[TenantId]) -> None:
        """Lists tenants; those that are listed stay so."""
        await self._redis.zadd(TENANTS_KEY, dict.fromkeys((DEFAULT_TENANT, *tenant_ids), 0))

    @redis_errors
    async def check(self, tenant_id: TenantId) -> None:
        """Raises NotFound where there is no such tenant."""
        is_listed = await self._redis.zscore(TENANTS_KEY, tenant_id) is not None
        if not is_listed and tenant_id != DEFAULT_TENANT and await self.deletion(tenant_id) is None:
            raise NotFound(f"there is no tenant {tenant_id!r}; its first key makes one")

    @redis_errors
    async def list_tenants(self, limit: int, after: TenantId | None = None) -> TenantPage:
        """The tenants after `after`, which need not be there."""
        first = f"({after}" if after else "-"
        found: Any = await self._redis.zrangebylex(TENANTS_KEY, first, "+", 0, limit + 1)
        tenants = tuple(TenantId(tenant_id.decode()) for tenant_id in found)
        return TenantPage(tenants[:limit], len(tenants) > limit)

    async def list_ids(self, limit: int, after: TenantId | None) -> tuple[TenantId, ...]:
        """The names alone of at most `limit` tenants after `after`."""
        return (await self.list_tenants(limit, after)).tenants

    @redis_errors
    async def ask_deletion(self, tenant_id: TenantId) -> Deletion:
        """Has a tenant deleted; asked again, it is the same deletion. Its keys are the caller's to remove, and at once."""
        now_ms = self._clock_ms()
        asked = _DELETION.dump_json(Deletion(now_ms, now_ms))
        (await self._replicas.command("HSETNX", DELETIONS_KEY, tenant_id, asked)).checked()
        return await self.deletion(tenant_id) or Deletion(now_ms, now_ms)

    @redis_errors
    async def deletion(self, tenant_id: TenantId) -> Deletion | None:
        """How the tenant's deletion stands; None where none was asked for, or it has ended."""
        data: Any = await self._redis.hget(DELETIONS_KEY, tenant_id)
        return None if data is None else decode(_DELETION, data, where=f"deletion of tenant {tenant_id}")

    @redis_errors
    async def deletions(self) -> dict[TenantId, Deletion]:
        """All that have not ended."""
        found: Any = await self._redis.hgetall(DELETIONS_KEY)
        return {
            TenantId(tenant_id.decode()): decode(_DELETION, data, where="a deletion")
            for tenant_id, data in found.items()
        }

    @redis_errors
    async def note(self, tenant_id: TenantId, deletion: Deletion) -> None:
        """Writes down how a deletion stands."""
        await self._redis.hset(DELETIONS_KEY, tenant_id, _DELETION.dump_json(deletion))

    @redis_errors
    async def end_deletion(self, tenant_id: TenantId) -> None:
        """Forgets the tenant, and last of all that it was deleted: from then on the name is free."""
        await self._redis.zrem(TENANTS_KEY, tenant_id)
        await self._redis.hdel(DELETIONS_KEY, tenant_id)
