"""Counts the entries of all memories now and then, so that a scrape need not."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from pydantic import TypeAdapter
from redis.asyncio import Redis

from app.domain.ids import DEFAULT_TENANT, LatentSpace, MemoryName, TenantId
from app.memory.keys import COUNT_LEASE_KEY, COUNTED_KEY, MemoryKey, index_key, log_key
from app.redis.errors import redis_errors
from app.redis.records import decode

_PAGE = 500
_LEAST_PAUSE_S = 60.0
_PAUSE_SHARE = 100  # so many times as long as a count took, nobody counts
_LEASE_MS = (
    15_000  # of a count that is under way, from its last page on: one that died or failed is begun anew then
)

_COUNTS = TypeAdapter(dict[str, int])


class Tenants(Protocol):
    """Who has memories."""

    async def list_ids(self, limit: int, after: TenantId | None) -> Sequence[TenantId]:
        """At most `limit` tenants after `after`, in the order of their names."""
        ...


class EntryCounter:
    """Entries by latent space, over all tenants. Any number of processes may call it: one counts for all.

    All methods raise StoreUnavailable where Redis does not answer.
    """

    INTERVAL_S = 10.0  # how often to look whether a count is due

    def __init__(self, redis: Redis, tenants: Tenants) -> None:
        self._redis = redis
        self._tenants = tenants

    @redis_errors
    async def count(self) -> bool:
        """Counts if nobody has lately; whether it did.

        Cost: a command for each tenant and for each memory, at most one hundredth of the time.
        """
        if not await self._redis.set(COUNT_LEASE_KEY, b"1", nx=True, px=_LEASE_MS):
            return False
        begun_s = time.monotonic()
        counted = await self._count_all()
        await self._redis.set(COUNTED_KEY, _COUNTS.dump_json(dict(counted)))
        pause_s = max(_LEAST_PAUSE_S, _PAUSE_SHARE * (time.monotonic() - begun_s))
        await self._redis.set(COUNT_LEASE_KEY, b"1", px=int(1000 * pause_s))
        return True

    @redis_errors
    async def read(self) -> Mapping[str, int] | None:
        """Entries by latent space as counted last; one that is absent has none. None before the first count."""
        found: Any = await self._redis.get(COUNTED_KEY)
        return None if found is None else decode(_COUNTS, found, where=COUNTED_KEY)

    async def _count_all(self) -> Counter[str]:
        counted, after = await self._count_of([DEFAULT_TENANT]), None
        while page := await self._tenants.list_ids(_PAGE, after):
            counted += await self._count_of([tenant for tenant in page if tenant != DEFAULT_TENANT])
            after = page[-1]
        return counted

    async def _count_of(self, tenants: Sequence[TenantId]) -> Counter[str]:
        await self._redis.pexpire(COUNT_LEASE_KEY, _LEASE_MS)
        pipeline = self._redis.pipeline(transaction=False)
        for tenant in tenants:
            pipeline.smembers(index_key(tenant))
        found: Any = await pipeline.execute() if tenants else []
        memories = [
            memory
            for tenant, members in zip(tenants, found, strict=True)
            for memory in _memories(tenant, members)
        ]
        counted: Counter[str] = Counter()
        for first in range(0, len(memories), _PAGE):
            part = memories[first : first + _PAGE]
            await self._redis.pexpire(COUNT_LEASE_KEY, _LEASE_MS)
            pipeline = self._redis.pipeline(transaction=False)
            for memory in part:
                pipeline.xlen(log_key(memory))
            for memory, num_entries in zip(part, await pipeline.execute(), strict=True):
                counted[memory.latent_space] += num_entries
        return counted


def _memories(tenant: TenantId, members: set[bytes]) -> Iterator[MemoryKey]:
    for member in members:
        space, name = member.decode().split(":", 1)
        yield MemoryKey(tenant, LatentSpace(space), MemoryName(name))
