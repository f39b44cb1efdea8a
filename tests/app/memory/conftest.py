"""Memories as the commit script writes them."""

from collections.abc import Awaitable, Callable, Iterable

import numpy as np
import pytest
from redis.asyncio import Redis

from app.domain.ids import image_id, make_job_id
from app.memory.codec import MemoryEntry, encode_entry
from app.memory.keys import MemoryKey, index_key, index_member, log_key, meta_key

FillMemory = Callable[..., Awaitable[None]]


def entry_of(version: int, dim: int = 4) -> bytes:
    """An entry that no other version has."""
    feature = np.full(dim, version % 100, np.float16)
    image = image_id(make_job_id(version, b"12345678"), version % 10)
    return encode_entry(MemoryEntry(image, version, 1000 + version, feature, feature[:2]))


@pytest.fixture(scope="session")
def make_entry() -> Callable[..., bytes]:
    """A function that makes the bytes of an entry; its number tells entries apart."""
    return entry_of


@pytest.fixture
def fill_memory(redis: Redis) -> FillMemory:
    """A function that adds entries of some versions to a memory."""

    async def fill(memory: MemoryKey, versions: Iterable[int], *, dim: int = 4) -> None:
        last = 0
        async with redis.pipeline(transaction=False) as pipeline:
            for version in versions:
                pipeline.xadd(log_key(memory), {"e": entry_of(version, dim)}, id=f"{version}-0")
                last = version
            pipeline.hset(meta_key(memory), mapping={"version": last, "created_at_ms": 1234})
            pipeline.sadd(index_key(memory.tenant_id), index_member(memory))
            await pipeline.execute()

    return fill
