"""Reads memories. They are written by the commit script of `app.jobs` alone, so nothing is remembered twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from app.domain.ids import LatentSpace, MemoryName, TenantId
from app.errors import CorruptRecord, InvalidRequest, VersionGone
from app.memory.codec import MemoryEntry, decode_entry
from app.memory.keys import MemoryKey, forgotten_key, index_key, log_key, meta_key
from app.redis.errors import redis_errors

PAGE_ENTRIES = 512
_PAGE_MEMORIES = 100


@dataclass(frozen=True, slots=True)
class ReadPoint:
    """What a request reads of a memory: `version` of it, and how far it had come and what was forgotten last by then.

    Also whether prompts were to be kept of what is added.
    """

    version: int
    current: int
    forget_version: int
    keeps_prompts: bool = False


@dataclass(frozen=True, slots=True)
class ForgottenRanges:
    """What was forgotten since some act: ranges (first, last) of versions, and the version of the last act.

    Who has not followed since `floor` cannot tell all that was forgotten by ranges.
    """

    version: int
    floor: int
    ranges: tuple[tuple[int, int], ...]


class MemoryStore:
    """The memories of all tenants, for reading. All methods raise StoreUnavailable where Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    @redis_errors
    async def version(self, memory: MemoryKey) -> int:
        """The last version that an entry or an act of forgetting took; 0 for a memory that does not exist yet."""
        return int(await self._redis.hget(meta_key(memory), "version") or 0)

    @redis_errors
    async def count(self, memory: MemoryKey) -> int:
        """The number of entries the memory holds now."""
        return int(await self._redis.xlen(log_key(memory)))

    @redis_errors
    async def created_at_ms(self, memory: MemoryKey) -> int | None:
        """When the first entry came, in Unix milliseconds; None for a memory that does not exist yet."""
        found = await self._redis.hget(meta_key(memory), "created_at_ms")
        return None if found is None else int(found)

    @redis_errors
    async def list_memories(self, tenant_id: TenantId) -> list[MemoryKey]:
        """The tenant's memories, by latent space and name."""
        members: Any = await self._redis.smembers(index_key(tenant_id))
        split = sorted(member.decode().split(":", 1) for member in members)
        return [MemoryKey(tenant_id, LatentSpace(space), MemoryName(name)) for space, name in split]

    @redis_errors
    async def resolve_version(
        self, memory: MemoryKey, wanted: int | None, *, member: str = "diversity.memory"
    ) -> ReadPoint:
        """What to read: the version `wanted` by a replay, else the current one. Cost: one round trip, mostly.

        Raises InvalidRequest where the memory has not come that far, and VersionGone where an entry that was there then
        was forgotten since, or the memory has another name; `member` of the request wants it, or the request itself where
        that is empty. Under the old name of one that was renamed nothing is read.
        """
        named = f"{member}.version".lstrip(".")
        names = ["renamed_to", "renamed_version", "version", "forget_version", "floor_version", "floor_first"]
        found: Any = await self._redis.hmget(meta_key(memory), [*names, "keep_prompts"])
        renamed_version, current, forget_version, floor, floor_first, keeps_prompts = (
            int(value or 0) for value in found[1:]
        )
        if current and current == renamed_version:  # nothing was made under this name since
            if wanted:
                raise VersionGone(
                    f"{named} {wanted}: memory {memory.name!r} has the name {found[0].decode()!r} now; ask for that",
                    param=named,
                )
            return ReadPoint(0, current, forget_version, bool(keeps_prompts))
        version = current if wanted is None else wanted
        if not 0 <= version <= current:
            raise InvalidRequest(
                f"{named} {wanted} is outside 0..{current}: memory {memory.name!r} is at version {current} now",
                param=named,
            )
        if version < forget_version:
            is_gone = floor_first <= version < floor
            if is_gone or await self._has_lost(memory, version):
                raise VersionGone(
                    f"{named} {wanted}: something that memory {memory.name!r} held then was forgotten since,"
                    f" so it cannot be read as it was; versions from {forget_version} on can",
                    param=named,
                )
        return ReadPoint(version, current, forget_version, bool(keeps_prompts))

    @redis_errors
    async def renamed_since(self, memory: MemoryKey, version: int) -> MemoryKey | None:
        """What was at `version` under this name, under the one that it got since; None where it has kept its own."""
        found: Any = await self._redis.hget(meta_key(memory), "renames")
        for rename in (found or b"").decode().split(";")[:-1]:
            at, name = rename.split("=")
            if version < int(at):
                return MemoryKey(memory.tenant_id, memory.latent_space, MemoryName(name))
        return None

    async def _has_lost(self, memory: MemoryKey, version: int) -> bool:
        """Whether an act after `version` was on entries up to it."""
        name = forgotten_key(memory)
        later: Any = self._redis.zrangebyscore(name, f"({version}", "+inf")
        return any(first <= version for first, _ in _ranges(await later))

    @redis_errors
    async def read_forgotten(self, memory: MemoryKey, since: int) -> ForgottenRanges:
        """What was forgotten by acts after the version `since`. Cost: one round trip."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hmget(meta_key(memory), ["forget_version", "floor_version"])
            pipeline.zrangebyscore(forgotten_key(memory), f"({since}", "+inf")
            meta, found = await pipeline.execute()
        version, floor = (int(value or 0) for value in meta)
        return ForgottenRanges(version, floor, tuple(_ranges(found)))

    @redis_errors
    async def last_acts(self, memories: Sequence[MemoryKey]) -> list[int | None]:
        """The version of each memory's last act of forgetting, 0 where there was none; None where nothing is known of it.

        A deletion is one, and so is another name, for the old one. Cost: one round trip for each 100 memories.
        """
        found: list[tuple[bytes | None, bytes | None]] = []
        for first in range(0, len(memories), _PAGE_MEMORIES):
            pipeline: Any = self._redis.pipeline(transaction=False)
            for memory in memories[first : first + _PAGE_MEMORIES]:
                pipeline.hmget(meta_key(memory), ["version", "forget_version"])
            found += await pipeline.execute()
        return [None if version is None else int(act or 0) for version, act in found]

    @redis_errors
    async def read_after(
        self, memory: MemoryKey, version: int, limit: int = PAGE_ENTRIES, *, until: int | None = None
    ) -> list[tuple[int, bytes]]:
        """One page, at most `limit` entries with version < v ≤ until, in order, each with its version.

        A page shorter than `limit` is the last one. Cost: one round trip.
        """
        last = "+" if until is None else f"{until}-0"
        page: Any = await self._redis.xrange(log_key(memory), min=f"({version}-0", max=last, count=limit)
        return [(version_of(entry_id), entry_bytes(memory, entry_id, found)) for entry_id, found in page]

    async def read_entries_after(
        self, memory: MemoryKey, version: int, limit: int = PAGE_ENTRIES, *, until: int | None = None
    ) -> list[tuple[int, MemoryEntry]]:
        """As `read_after`, decoded. Raises CorruptRecord with the memory and version of the first corrupt entry."""
        page = await self.read_after(memory, version, limit, until=until)
        return [(at, decode_entry(data, where=describe_entry(memory, at))) for at, data in page]


def _ranges(members: list[bytes]) -> list[tuple[int, int]]:
    split = (member.split(b"-") for member in members)
    return [(int(first), int(last)) for first, last in split]


def describe_entry(memory: MemoryKey, version: int) -> str:
    """How messages name an entry."""
    return f"memory {memory} version {version}"


def version_of(entry_id: bytes) -> int:
    """The version that an entry of a log has."""
    return int(entry_id.split(b"-")[0])


def entry_bytes(memory: MemoryKey, entry_id: bytes, found: dict[bytes, bytes]) -> bytes:
    """The bytes of an entry of a log. Raises CorruptRecord."""
    data = found.get(b"e")
    if data is None:
        raise CorruptRecord(
            f"{describe_entry(memory, version_of(entry_id))}: the stream entry has no field e"
        )
    return data
