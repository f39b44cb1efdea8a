"""Writes a memory as an archive, as of one version, in pages: memory is bounded, and a slow reader is waited for."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis

from app.errors import CorruptRecord, InvalidRequest, InvalidValue
from app.memory.archive import ArchiveHeader, ArchiveWriter, Entry
from app.memory.codec import decode_entry, without_prompt
from app.memory.keys import MemoryKey, index_key, index_member, log_key, meta_key
from app.memory.overview import no_such_memory
from app.memory.store import describe_entry, entry_bytes, version_of
from app.redis.errors import redis_errors
from app.redis.scripts import load_script

PAGE_BYTES = 256 * 1024
MAX_PAGE_ENTRIES = 512
_COUNTED_AT_ONCE = 1000

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Export:
    """A memory on its way out: what its archive begins with, and how many entries are read at once.

    Prompts of entries up to `bare_version` are not to be kept any more, and do not go out either.
    """

    memory: MemoryKey
    header: ArchiveHeader
    page_entries: int
    bare_version: int = 0


class MemoryExporter:
    """Archives of the memories of all tenants. All methods raise StoreUnavailable where Redis does not answer.

    The archive as of one version is the same to the byte whenever it is made, unless entries were forgotten meanwhile.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._count_after = load_script(redis, "app.memory", "count_after")

    @redis_errors
    async def begin(self, memory: MemoryKey, version: int | None = None) -> Export:
        """What an archive as of a version is to hold; None is the current one.

        Raises NotFound, and InvalidRequest where the memory has not come that far. Cost: two round trips, and one for
        each 1,000 entries that are newer than the version.
        """
        async with self._redis.pipeline(transaction=True) as opened:
            pipeline: Any = opened
            pipeline.sismember(index_key(memory.tenant_id), index_member(memory))
            pipeline.hmget(meta_key(memory), ["version", "created_at_ms", "bare_version"])
            pipeline.xlen(log_key(memory))
            is_there, meta, num_entries = await pipeline.execute()
        if not is_there:
            raise no_such_memory(memory.memory_id)
        current, created_at_ms, bare_version = (int(value or 0) for value in meta)
        if version is not None and version > current:
            raise InvalidRequest(
                f"version {version} is outside 0..{current}: memory {memory.name!r} is at version {current} now",
                param="version",
            )
        until = current if version is None else version
        newest: Any = await self._redis.xrevrange(log_key(memory), max=f"{until}-0", count=1)
        size_bytes, feature_dim, prompt_dim = _measure(memory, newest)
        header = ArchiveHeader(
            latent_space=memory.latent_space,
            name=memory.name,
            version=until,
            created_at_ms=created_at_ms,
            num_entries=num_entries - await self._num_after(memory, until),
            feature_dim=feature_dim,
            prompt_dim=prompt_dim,
        )
        page_entries = max(1, min(MAX_PAGE_ENTRIES, PAGE_BYTES // max(1, size_bytes)))
        return Export(memory, header, page_entries, bare_version)

    async def write(self, export: Export) -> AsyncIterator[bytes]:
        """The archive's bytes, some at a time. Raises NotFound where the memory is deleted meanwhile.

        An entry that cannot be read is left out and logged: no worker reads it either.
        """
        writer, after = ArchiveWriter(export.header), 0
        yield writer.begin()
        while page := await self._page(export, after):
            after = version_of(page[-1][0])
            chunk = await asyncio.to_thread(_add, writer, export, page)
            if chunk:
                yield chunk
        yield writer.end(forget_version=await self._forget_version(export.memory))

    @redis_errors
    async def _page(self, export: Export, after: int) -> Any:
        until = f"{export.header.version}-0"
        log = log_key(export.memory)
        if after >= export.header.version:
            return []
        return await self._redis.xrange(log, min=f"({after}-0", max=until, count=export.page_entries)

    @redis_errors
    async def _forget_version(self, memory: MemoryKey) -> int:
        async with self._redis.pipeline(transaction=True) as opened:
            pipeline: Any = opened
            pipeline.sismember(index_key(memory.tenant_id), index_member(memory))
            pipeline.hget(meta_key(memory), "forget_version")
            is_there, found = await pipeline.execute()
        if not is_there:
            raise no_such_memory(memory.memory_id)
        return int(found or 0)

    async def _num_after(self, memory: MemoryKey, version: int) -> int:
        num_entries, num_read, after = 0, _COUNTED_AT_ONCE, version
        while num_read == _COUNTED_AT_ONCE:
            found: Any = await self._count_after([log_key(memory)], [after, _COUNTED_AT_ONCE])
            num_read, after = int(found[0]), int(found[1])
            num_entries += num_read
        return num_entries


async def skip(chunks: AsyncIterator[bytes], num_bytes: int) -> AsyncIterator[bytes]:
    """What follows the first bytes, once they have been passed over. Raises InvalidValue where there are fewer."""
    left_bytes, first = num_bytes, b""
    while left_bytes and (chunk := await anext(chunks, None)) is not None:
        first = chunk[left_bytes:]
        left_bytes = max(0, left_bytes - len(chunk))
    if left_bytes:
        raise InvalidValue(
            f"from_byte {num_bytes} is behind the archive's end at {num_bytes - left_bytes}",
            param="from_byte",
        )
    return _chain(first, chunks)


async def _chain(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for chunk in chunks:
        yield chunk


def _measure(memory: MemoryKey, newest: Any) -> tuple[int, int, int]:
    """Size and dimensions of the newest entry; zeros where there is none that can be read."""
    for entry_id, fields in newest:
        try:
            data = entry_bytes(memory, entry_id, fields)
            entry = decode_entry(data)
        except CorruptRecord:
            continue
        return len(data), entry.feature.size, entry.prompt_embedding.size
    return 0, 0, 0


def _add(writer: ArchiveWriter, export: Export, page: Any) -> bytes:
    return writer.add(_readable(export, page))


def _readable(export: Export, page: Any) -> list[Entry]:
    found, memory = [], export.memory
    for entry_id, fields in page:
        version = version_of(entry_id)
        try:
            data = entry_bytes(memory, entry_id, fields)
            decode_entry(data, where=describe_entry(memory, version))
        except CorruptRecord as error:
            _log.error("memory_entry_left_out", memory=str(memory), version=version, reason=error.message)
            continue
        found.append((version, without_prompt(data) if version <= export.bare_version else data))
    return found
