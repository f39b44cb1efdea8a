"""What a tenant sees of its memories: which there are, how large they are, what they hold."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from app.domain.ids import LatentSpace, MemoryId, MemoryName, TenantId
from app.errors import CorruptRecord, NotFound
from app.memory.codec import MemoryEntry, decode_entry, read_time_ms
from app.memory.keys import MemoryKey, index_key, index_member, log_key, meta_key
from app.memory.store import describe_entry, entry_bytes, version_of
from app.redis.errors import redis_errors

_PAGE_ENTRIES = 100
_META = ("version", "created_at_ms", "max_entries", "max_age_s", "frozen", "keep_prompts")


@dataclass(frozen=True, slots=True)
class MemoryShape:
    """A memory's settings: whether it takes nothing new, how much it holds at most (None: no cap), whether prompts are kept."""

    is_frozen: bool = False
    max_entries: int | None = None
    max_age_s: int | None = None
    keeps_prompts: bool = False


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """A memory as it stands. `size_bytes` is what Redis uses for its entries, estimated from a few of them."""

    memory: MemoryKey
    num_entries: int
    version: int
    size_bytes: int
    created_at_ms: int
    newest_at_ms: int | None
    shape: MemoryShape = MemoryShape()


@dataclass(frozen=True, slots=True)
class MemoryPage:
    """Some memories in order of their ids, and whether there are more."""

    memories: tuple[MemoryStats, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class EntryQuery:
    """At most `limit` entries, from the one after the version `after` in their order; the newest first is `desc`."""

    limit: int
    order: Literal["asc", "desc"] = "desc"
    after: int | None = None


@dataclass(frozen=True, slots=True)
class EntryPage:
    """Some entries, each with its version, and whether there are more."""

    entries: tuple[tuple[int, MemoryEntry], ...]
    has_more: bool


class MemoryOverview:
    """The memories of all tenants as they are shown. All methods raise StoreUnavailable where Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    @redis_errors
    async def list_memories(
        self, tenant_id: TenantId, limit: int, after: MemoryId | None = None
    ) -> MemoryPage:
        """At most `limit` memories, from the one after `after`, which need not be there any more.

        Cost: two round trips; the whole index is read, which has one member a memory.
        """
        members: Any = await self._redis.smembers(index_key(tenant_id))
        split = (member.decode().split(":", 1) for member in members)
        found = [MemoryKey(tenant_id, LatentSpace(space), MemoryName(name)) for space, name in split]
        found = sorted(found, key=lambda memory: memory.memory_id)
        later = [memory for memory in found if after is None or memory.memory_id > after]
        return MemoryPage(tuple(await self._read(later[:limit])), len(later) > limit)

    @redis_errors
    async def count_entries(self, tenant_id: TenantId) -> int:
        """Entries in all memories of a tenant. Cost: two round trips, and a command for each memory."""
        members: Any = await self._redis.smembers(index_key(tenant_id))
        pipeline: Pipeline = self._redis.pipeline(transaction=False)
        for member in members:
            space, name = member.decode().split(":", 1)
            pipeline.xlen(log_key(MemoryKey(tenant_id, LatentSpace(space), MemoryName(name))))
        return sum(await pipeline.execute()) if members else 0

    @redis_errors
    async def get(self, memory: MemoryKey) -> MemoryStats:
        """One memory. Raises NotFound, the same for one that never was and for one of another tenant."""
        if not await self._is_there(memory):
            raise no_such_memory(memory.memory_id)
        (stats,) = await self._read([memory])
        return stats

    @redis_errors
    async def list_entries(self, memory: MemoryKey, query: EntryQuery) -> EntryPage:
        """The entries of a query. A cursor names a place, so its own entry need not be there. Raises NotFound.

        An entry that cannot be read is left out and logged: it must not hide the others.
        """
        if not await self._is_there(memory):
            raise no_such_memory(memory.memory_id)
        found: list[tuple[int, MemoryEntry]] = []
        bare_version = await self._bare_version(memory)
        after = query.after
        while len(found) <= query.limit:
            page = await self._page(memory, after, query.order)
            found += _readable(memory, page, bare_version=bare_version)
            if len(page) < _PAGE_ENTRIES:
                break
            after = version_of(page[-1][0])
        return EntryPage(tuple(found[: query.limit]), len(found) > query.limit)

    @redis_errors
    async def check_there(self, memory: MemoryKey) -> None:
        """Raises NotFound where there is no such memory."""
        if not await self._is_there(memory):
            raise no_such_memory(memory.memory_id)

    @redis_errors
    async def read_entries(self, memory: MemoryKey, versions: Sequence[int]) -> dict[int, MemoryEntry]:
        """The entries of some versions that are there and can be read. Cost: two round trips."""
        log = log_key(memory)
        pipeline: Pipeline = self._redis.pipeline(transaction=False)
        for version in versions:
            pipeline.xrange(log, min=f"{version}-0", max=f"{version}-0")
        pages: Any = await pipeline.execute() if versions else []
        found = [entry for page in pages for entry in page]
        return dict(_readable(memory, found, bare_version=await self._bare_version(memory)))

    async def _bare_version(self, memory: MemoryKey) -> int:
        """Up to where prompts are not shown."""
        found: Any = await self._redis.hget(meta_key(memory), "bare_version")
        return int(found or 0)

    @redis_errors
    async def read_growth(self, memory: MemoryKey, version: int, num_points: int) -> list[tuple[int, int]]:
        """Versions up to `version` that are there, about evenly spaced, the newest among them, and when each was made.

        In Unix milliseconds. At most so many; fewer where what lay between was forgotten. Cost: one round trip.
        """
        log, num_steps = log_key(memory), max(1, min(num_points, version) - 1)
        wanted = sorted({1 + (version - 1) * step // num_steps for step in range(num_steps)})
        pipeline: Pipeline = self._redis.pipeline(transaction=False)
        for at in wanted:
            pipeline.xrange(log, min=f"{at}-0", max=f"{version}-0", count=1)
        pipeline.xrevrange(log, max=f"{version}-0", count=1)
        pages: Any = await pipeline.execute()
        found = {
            version_of(name): read_time_ms(fields.get(b"e", b"")) for page in pages for name, fields in page
        }
        return sorted(found.items())

    async def _is_there(self, memory: MemoryKey) -> bool:
        asked: Any = self._redis.sismember(index_key(memory.tenant_id), index_member(memory))
        return bool(await asked)

    async def _page(self, memory: MemoryKey, after: int | None, order: str) -> Any:
        log = log_key(memory)
        if order == "asc":
            return await self._redis.xrange(log, min=f"({after or 0}-0", count=_PAGE_ENTRIES)
        newest = "+" if after is None else f"({after}-0"
        return await self._redis.xrevrange(log, max=newest, count=_PAGE_ENTRIES) if after != 0 else []

    async def _read(self, memories: list[MemoryKey]) -> list[MemoryStats]:
        pipeline: Pipeline = self._redis.pipeline(transaction=False)
        for memory in memories:
            log = log_key(memory)
            pipeline.hmget(meta_key(memory), _META)
            pipeline.xlen(log)
            pipeline.memory_usage(log)
            pipeline.xrevrange(log, count=1)
        answers: Any = await pipeline.execute() if memories else []
        return [
            _stats(memory, answers[4 * place], answers[4 * place + 1 : 4 * place + 4])
            for place, memory in enumerate(memories)
        ]


def no_such_memory(memory_id: str) -> NotFound:
    """The error for an id that names no memory of the tenant."""
    why = "it was deleted, or never was yours"
    if "." not in memory_id:
        why = (
            "an id is the latent space, a dot and the name, as demo.default, and GET /v1/memories lists yours"
        )
    return NotFound(f"there is no memory {memory_id[:140]!r}; {why}")


def _stats(memory: MemoryKey, meta: Any, log: Any) -> MemoryStats:
    version, created_at_ms, max_entries, max_age_s = (
        None if value is None else int(value) for value in meta[:4]
    )
    num_entries, size_bytes, newest = log
    readable = _readable(memory, newest)
    return MemoryStats(
        memory=memory,
        num_entries=num_entries,
        version=version or 0,
        size_bytes=size_bytes or 0,
        created_at_ms=created_at_ms or 0,
        newest_at_ms=readable[0][1].created_at_ms if readable else None,
        shape=MemoryShape(meta[4] is not None, max_entries, max_age_s, meta[5] is not None),
    )


def _readable(memory: MemoryKey, page: Any, *, bare_version: int = 0) -> list[tuple[int, MemoryEntry]]:
    """The entries of a page. Prompts that are still to be taken out are out already for whoever looks."""
    found = []
    for entry_id, fields in page:
        version = version_of(entry_id)
        try:
            data = entry_bytes(memory, entry_id, fields)
            entry = decode_entry(data, where=describe_entry(memory, version))
            found.append((version, replace(entry, prompt="") if version <= bare_version else entry))
        except CorruptRecord as error:
            structlog.get_logger().error("memory_entry_left_out", memory=str(memory), reason=error.message)
    return found
