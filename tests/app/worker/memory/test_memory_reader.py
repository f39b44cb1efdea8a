"""What a job reads of a memory that changes between its look at the version and its reading."""

import io

import pytest
from PIL import Image

from app.domain.ids import LatentSpace, MemoryName, TenantId
from app.domain.job import JobState
from app.domain.request import MemorySelection
from app.jobs.workers import now_ms
from app.memory.keys import MemoryKey
from app.memory.making import MemoryMaker

pytestmark = pytest.mark.anyio

MEMORY = MemoryKey(TenantId("acme"), LatentSpace("toy"), MemoryName("default"))


def _rename_before_the_next_sync(bench, names, then=None):
    """The next reading of this worker finds the memory under the last of the names, whatever it had opened."""
    sync, maker = bench.memories.sync, MemoryMaker(bench.redis, max_memories=9, clock_ms=now_ms)

    async def rename_first(*arguments, **members):
        bench.memories.sync = sync
        memory = MEMORY
        for name in names:
            memory = await maker.rename(memory, MemoryName(name))
        if then is not None:
            await then()
        return await sync(*arguments, **members)

    bench.memories.sync = rename_first


async def _pixels(bench, record):
    return [Image.open(io.BytesIO(png)).tobytes() for png in await bench.pngs(record)]


@pytest.mark.parametrize("has_copy", [True, False])
@pytest.mark.parametrize("is_made_anew", [True, False])
@pytest.mark.parametrize("names", [["new"], ["newer", "newest"]])
async def test_a_rename_on_the_way_takes_no_guidance(open_bench, make_job, names, is_made_anew, has_copy):
    """The job is guided by what it had opened, is remembered there, and its replay under the new name is the same."""
    bench, other = open_bench("one"), open_bench("two")
    await other.run(make_job(1, num_images=3))
    if has_copy:
        await bench.run(make_job(2, memory=MemorySelection(MEMORY.name, write=False)))

    async def make_anew():
        await other.run(make_job(3, num_images=2))

    _rename_before_the_next_sync(bench, names, make_anew if is_made_anew else None)
    (record,) = await bench.run(make_job(4))
    assert record.state is JobState.SUCCEEDED
    assert record.result.images[0].num_neighbours == 3
    assert (record.result.memory_name, record.result.memory_version) == (names[-1], 3)
    assert await bench.version(name=names[-1]) == 4
    again = MemorySelection(MemoryName(names[-1]), write=False, version=3)
    (replayed,) = await bench.run(make_job(5, memory=again))
    assert await _pixels(bench, replayed) == await _pixels(bench, record)


async def test_a_replay_that_a_rename_overtakes_is_refused(bench, make_job):
    """It asked for versions of a name, and is told the one that they have now."""
    await bench.run(make_job(1, num_images=2))
    _rename_before_the_next_sync(bench, ["new"])
    (record,) = await bench.run(make_job(2, memory=MemorySelection(MEMORY.name, version=2)))
    assert record.failure.code == "memory_version_gone"
    assert "'new'" in record.failure.message


async def test_a_memory_whose_last_version_is_no_entry_is_read_as_it_is(bench, make_job):
    """As after forgetting: nothing was renamed, and what is left guides."""
    await bench.run(make_job(1, num_images=3))
    await bench.redis.xdel("sparke:{t:acme}:memory:toy:default:log", "3-0")
    (record,) = await bench.run(make_job(2))
    assert (record.result.images[0].num_neighbours, record.result.memory_name) == (2, "default")
