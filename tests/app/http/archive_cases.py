"""Memories of synthetic entries, and archives of them."""

import asyncio
from collections.abc import Iterable

import numpy as np

from app.domain.ids import LatentSpace, MemoryName, TenantId, image_id, make_job_id
from app.memory.archive import ArchiveHeader, ArchiveWriter
from app.memory.codec import MemoryEntry, encode_entry
from app.memory.keys import MemoryKey, index_key, index_member, log_key, meta_key
from app.redis.connection import connect


def make_entry(version: int, dim: int = 100) -> bytes:
    """An entry that no other version has."""
    feature = np.full(dim, version % 100, np.float16)
    image = image_id(make_job_id(version, b"12345678"), version % 10)
    return encode_entry(MemoryEntry(image, version, 1000 + version, feature, feature[:2]))


def make_archive(
    name: str,
    versions: Iterable[int] = (1, 2, 5),
    *,
    space: str = "toy",
    dim: int = 100,
    num_said: int | None = None,
) -> bytes:
    """An archive of entries of some versions, of a memory that is nowhere; its header may say another number of them."""
    entries = [(version, make_entry(version, dim)) for version in versions]
    newest, num_entries = entries[-1][0] if entries else 0, len(entries) if num_said is None else num_said
    writer = ArchiveWriter(
        ArchiveHeader(LatentSpace(space), MemoryName(name), newest, 1234, num_entries, dim, 2)
    )
    return writer.begin() + writer.add(entries) + writer.end(forget_version=0)


def fill_memory(
    redis_url: str, name: str, newest: int, *, first: int = 1, dim: int = 100, tenant: str = "default"
) -> None:
    """Writes entries of the versions from `first` to `newest` into a memory of the toy's latent space."""
    memory = MemoryKey(TenantId(tenant), LatentSpace("toy"), MemoryName(name))

    async def fill() -> None:
        redis = connect(redis_url)
        async with redis.pipeline(transaction=False) as pipeline:
            for version in range(first, newest + 1):
                pipeline.xadd(log_key(memory), {"e": make_entry(version, dim)}, id=f"{version}-0")
            pipeline.hset(meta_key(memory), mapping={"version": newest, "created_at_ms": 1_000_000})
            pipeline.sadd(index_key(memory.tenant_id), index_member(memory))
            await pipeline.execute()
        await redis.aclose()

    asyncio.run(fill())


def keys_of_imports(redis_url: str) -> list[bytes]:
    """Every key of an import that is in the database."""

    async def scan() -> list[bytes]:
        redis = connect(redis_url)
        found = [key async for key in redis.scan_iter(match="*memory-import*", count=1000)]
        await redis.aclose()
        return found

    return asyncio.run(scan())
