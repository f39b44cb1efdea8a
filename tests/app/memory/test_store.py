"""Reading memories."""

import numpy as np
import pytest

from app.domain.ids import LatentSpace, MemoryName, TenantId, image_id, make_job_id
from app.errors import CorruptRecord, InvalidRequest
from app.memory.codec import MemoryEntry, encode_entry
from app.memory.keys import MemoryKey, index_key, index_member, log_key, meta_key
from app.memory.store import MemoryStore

pytestmark = pytest.mark.anyio

MEMORY = MemoryKey(TenantId("acme"), LatentSpace("demo"), MemoryName("default"))


def _entry(number):
    ones = np.ones(2, np.float16)
    return encode_entry(
        MemoryEntry(image_id(make_job_id(number, b"12345678"), 0), number, number, ones, ones)
    )


@pytest.fixture
async def store(redis):
    """A store of one memory with seven entries, as the commit script writes them."""
    for version in range(1, 8):
        await redis.xadd(log_key(MEMORY), {"e": _entry(version)}, id=f"{version}-0")
    await redis.hset(meta_key(MEMORY), mapping={"version": 7, "created_at_ms": 1234})
    await redis.sadd(index_key(MEMORY.tenant_id), index_member(MEMORY))
    return MemoryStore(redis)


async def test_a_memory_is_read_by_pages(store):
    """Pages follow each other without gap or overlap; the short one is the last."""
    pages, version = [], 0
    while True:
        page = await store.read_after(MEMORY, version, 3)
        pages.append([at for at, _ in page])
        if len(page) < 3:
            break
        version = page[-1][0]
    assert pages == [[1, 2, 3], [4, 5, 6], [7]]


async def test_a_memory_is_read_as_it_was(store):
    """`until` is the last version that is read, as for a replay; 0 reads nothing."""
    assert [entry.seed for _, entry in await store.read_entries_after(MEMORY, 2, 10, until=5)] == [3, 4, 5]
    assert await store.read_after(MEMORY, 0, 10, until=0) == []
    assert await store.read_after(MEMORY, 7, 10) == []


async def test_what_a_memory_says_of_itself(store):
    """Version, count, time of creation, and the tenant's list."""
    assert (await store.version(MEMORY), await store.count(MEMORY)) == (7, 7)
    assert await store.created_at_ms(MEMORY) == 1234
    assert await store.list_memories(MEMORY.tenant_id) == [MEMORY]


async def test_a_memory_that_does_not_exist_is_empty(store):
    """Another tenant's memory of the same name is a different one, at version 0."""
    other = MemoryKey(TenantId("other"), MEMORY.latent_space, MEMORY.name)
    assert (await store.version(other), await store.count(other)) == (0, 0)
    assert await store.created_at_ms(other) is None
    assert await store.read_after(other, 0, 10) == []
    assert await store.list_memories(other.tenant_id) == []


@pytest.mark.parametrize(("wanted", "version"), [(None, 7), (7, 7), (0, 0), (3, 3)])
async def test_the_version_to_read_is_the_wanted_or_the_current(store, wanted, version):
    """Any version up to now can be replayed."""
    assert (await store.resolve_version(MEMORY, wanted)).version == version


async def test_a_version_of_the_future_is_refused_with_both_numbers(store):
    """The message says what was asked and what there is; `param` names the member."""
    with pytest.raises(InvalidRequest, match=r"version 8 .*version 7") as caught:
        await store.resolve_version(MEMORY, 8)
    assert caught.value.param == "diversity.memory.version"


async def test_a_corrupt_entry_is_named_by_memory_and_version(store, redis):
    """Whether its bytes are wrong or missing, the message leads to it; entries before it can be read."""
    await redis.xadd(log_key(MEMORY), {"e": _entry(8)[:-1] + b"?"}, id="8-0")
    with pytest.raises(CorruptRecord, match="memory acme/demo/default version 8: checksum"):
        await store.read_entries_after(MEMORY, 6, 10)
    assert len(await store.read_entries_after(MEMORY, 6, 1)) == 1
    await redis.xadd(log_key(MEMORY), {"x": b"1"}, id="9-0")
    with pytest.raises(CorruptRecord, match="memory acme/demo/default version 9"):
        await store.read_after(MEMORY, 8, 10)
