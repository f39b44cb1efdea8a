"""Records of files."""

import asyncio
import random
from dataclasses import replace

import pytest

from app.domain.file import FilePurpose
from app.domain.ids import TenantId
from app.errors import CorruptRecord, NotFound, StorageFull, TooManyFiles
from app.files import keys
from app.files.store import FileQuery, FileStore

pytestmark = pytest.mark.anyio

ACME, BOLT = TenantId("acme"), TenantId("bolt")


async def test_a_record_comes_back_as_it_was(cabinet):
    """For its tenant; for another one there is no such file."""
    file = cabinet.file()
    await cabinet.store().add(file)
    assert await cabinet.store().get(ACME, file.file_id) == file
    with pytest.raises(NotFound):
        await cabinet.store().get(BOLT, file.file_id)


async def test_removing_is_once(cabinet):
    """The second time there is none, and another tenant's is none at all."""
    file = cabinet.file()
    store = cabinet.store()
    await store.add(file)
    with pytest.raises(NotFound):
        await store.remove(BOLT, file.file_id)
    ends = await asyncio.gather(*(store.remove(ACME, file.file_id) for _ in range(8)), return_exceptions=True)
    assert [type(end) for end in ends].count(NotFound) == 7
    with pytest.raises(NotFound):
        await store.get(ACME, file.file_id)
    assert await cabinet.redis.dbsize() == 0


async def test_the_bound_holds_against_all_at_once(cabinet):
    """Of thirty that come together ten get in; what goes makes room, and other tenants have their own."""
    cabinet.max_files = 10
    files = [cabinet.file() for _ in range(30)]
    stores = [cabinet.store() for _ in files]
    ends = await asyncio.gather(
        *(store.add(file) for store, file in zip(stores, files, strict=True)), return_exceptions=True
    )
    assert [type(end) for end in ends].count(TooManyFiles) == 20
    with pytest.raises(TooManyFiles, match="10 files"):
        await cabinet.store().check_room(ACME)
    await cabinet.store().add(cabinet.file("bolt"))
    kept = files[ends.index(None)]
    await cabinet.store().remove(ACME, kept.file_id)
    await cabinet.store().check_room(ACME)
    await cabinet.store().add(cabinet.file())


async def test_a_repeated_add_changes_nothing(cabinet):
    """As a lost connection repeats it: also where the bound is reached with it."""
    cabinet.max_files = 1
    file = cabinet.file()
    await cabinet.store().add(file)
    await cabinet.store().add(file)
    page = await cabinet.store().list_files(ACME, FileQuery(limit=10))
    assert page.files == (file,)


async def test_an_expired_file_is_nowhere_and_makes_room(cabinet):
    """By the service's clock, before Redis has noticed; and in Redis everything has a time to live."""
    cabinet.max_files = 2
    store = cabinet.store()
    short, long = cabinet.file(ttl_ms=60_000), cabinet.file(ttl_ms=600_000)
    await store.add(short)
    await store.add(long)
    ttls_ms = [await cabinet.redis.pttl(key) for key in await cabinet.redis.keys("*")]
    assert sorted(0 < ttl_ms <= 600_000 for ttl_ms in ttls_ms) == [True] * 5
    assert max(ttls_ms) > 590_000
    cabinet.now_ms = short.expires_at_ms - 1
    assert await store.get(ACME, short.file_id) == short
    cabinet.now_ms += 1
    with pytest.raises(NotFound):
        await store.get(ACME, short.file_id)
    assert (await store.list_files(ACME, FileQuery(limit=10))).files == (long,)
    await store.check_room(ACME)
    await store.add(cabinet.file())
    with pytest.raises(NotFound):
        await store.remove(ACME, short.file_id)
    with pytest.raises(TooManyFiles):
        await store.add(cabinet.file())


async def test_an_expired_file_cannot_be_removed(cabinet):
    """By the service's clock, before Redis has noticed: it is not found, and nothing of it stays."""
    file = cabinet.file(ttl_ms=60_000)
    await cabinet.store().add(file)
    cabinet.now_ms = file.expires_at_ms
    with pytest.raises(NotFound):
        await cabinet.store().remove(ACME, file.file_id)
    assert await cabinet.redis.dbsize() == 0


async def test_the_index_does_not_shrink_its_life(cabinet):
    """A file that ends sooner, added later, leaves the index as long as the other one needs it."""
    await cabinet.store().add(cabinet.file(ttl_ms=600_000))
    await cabinet.store().add(cabinet.file(ttl_ms=60_000))
    for key in (keys.index_key(ACME), keys.expiries_key(ACME)):
        assert await cabinet.redis.pttl(key) > 590_000


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("purpose", [None, "batch", "batch_output", "vision"])
@pytest.mark.parametrize("limit", [1, 3, 12, 600])
async def test_pages_are_what_a_list_in_memory_says(cabinet, order, purpose, limit):
    """Every page and its `has_more` against slices of a plain list, with files missing in between."""
    dice = random.Random(limit)
    cabinet.max_files = 1000
    store = cabinet.store()
    files = [cabinet.file(purpose=dice.choice(list(FilePurpose))) for _ in range(25)]
    for file in dice.sample(files, len(files)):
        await store.add(file)
    gone = dice.sample(files, 6)
    for file in gone:
        await store.remove(ACME, file.file_id)
    expected = [file for file in files if file not in gone and purpose in (None, file.purpose)]
    if order == "desc":
        expected.reverse()
    after, seen = None, []
    while True:
        page = await store.list_files(ACME, FileQuery(limit=limit, order=order, after=after, purpose=purpose))
        assert list(page.files) == expected[len(seen) : len(seen) + limit]
        seen += page.files
        assert page.has_more == (len(seen) < len(expected))
        if not page.has_more:
            break
        after = page.files[-1].file_id


async def test_a_cursor_outlives_its_file(cabinet):
    """The place that an id names stays when the file goes."""
    store = cabinet.store()
    files = [cabinet.file() for _ in range(3)]
    for file in files:
        await store.add(file)
    await store.remove(ACME, files[1].file_id)
    for order, left in (("asc", files[2]), ("desc", files[0])):
        page = await store.list_files(ACME, FileQuery(limit=9, order=order, after=files[1].file_id))
        assert page.files == (left,)


async def test_a_corrupt_record_hides_no_other(cabinet):
    """It is an error where it is asked for, left out where files are listed, and can be removed."""
    store = cabinet.store()
    good, bad = cabinet.file(), cabinet.file()
    for file in (good, bad):
        await store.add(file)
    await cabinet.redis.set(keys.file_key(ACME, bad.file_id), b'{"filename": 3}', keepttl=True)
    assert (await store.list_files(ACME, FileQuery(limit=9))).files == (good,)
    with pytest.raises(CorruptRecord, match=bad.file_id):
        await store.get(ACME, bad.file_id)
    await store.remove(ACME, bad.file_id)


async def test_which_ids_name_no_file(cabinet):
    """In one look, in the order in which they were asked for."""
    file, other = cabinet.file(), cabinet.file()
    await cabinet.store().add(file)
    found = await cabinet.store().without_record(ACME, [other.file_id, file.file_id])
    assert found == [other.file_id]


async def test_bytes_have_a_bound_where_the_tenant_has_one(cabinet):
    """To the byte, over all files that are there; what is removed or expires makes room, and the same file again is none."""

    async def most_bytes(tenant_id):
        return 5 if tenant_id == ACME else None

    bounded = FileStore(cabinet.redis, max_files=100, clock_ms=cabinet.clock_ms, most_bytes=most_bytes)
    one, two, three, other = cabinet.file(ttl_ms=60_000), cabinet.file(), cabinet.file(), cabinet.file("bolt")
    for file in (one, two, two, other):
        await bounded.add(file)
    assert await bounded.stored_bytes(ACME) == 3
    with pytest.raises(StorageFull):
        await bounded.add(three)
    await bounded.remove(ACME, two.file_id)
    await bounded.add(three)
    cabinet.now_ms += 60_001
    assert await bounded.stored_bytes(ACME) == 3
    await bounded.check_room(ACME)
    await bounded.add(replace(cabinet.file(), size_bytes=2))
    with pytest.raises(StorageFull):
        await bounded.check_room(ACME)
    await cabinet.store().add(cabinet.file())  # as what batches make, which has no bound
    assert await bounded.stored_bytes(ACME) == 5 + cabinet.num_files
