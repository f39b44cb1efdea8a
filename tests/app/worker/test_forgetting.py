"""What was forgotten guides no image that is begun afterwards, at any worker."""

import asyncio
import io

import pytest
from PIL import Image

from app.domain.ids import LatentSpace, MemoryName, TenantId
from app.domain.job import JobState
from app.domain.request import MemorySelection, ReferenceSelection
from app.jobs.workers import now_ms
from app.memory.forgetting import MemoryForgetter
from app.memory.keys import MemoryKey, log_key, meta_key
from app.memory.making import MemoryMaker

pytestmark = pytest.mark.anyio

MEMORY = MemoryKey(TenantId("acme"), LatentSpace("toy"), MemoryName("default"))
NAME = MemoryName("default")


@pytest.fixture
def forgetter(redis):
    """What forgets."""
    return MemoryForgetter(redis, clock_ms=now_ms)


def _neighbours(record):
    return [image.num_neighbours for image in record.result.images]


async def _pixels(bench, record):
    return [Image.open(io.BytesIO(png)).tobytes() for png in await bench.pngs(record)]


async def test_two_workers_forget_an_entry_at_their_next_read(open_bench, make_job, forgetter):
    """Each has a copy with the entry; after the acknowledgement neither uses it, and other entries stay."""
    one, two = open_bench("one"), open_bench("two")
    await one.run(make_job(1, num_images=3))
    unwritten = MemorySelection(NAME, write=False)
    for number, bench in enumerate((one, two)):
        (record,) = await bench.run(make_job(10 + number, memory=unwritten))
        assert _neighbours(record) == [3]
    assert (await forgetter.forget_versions(MEMORY, [2])).num_entries == 1
    for number, bench in enumerate((one, two)):
        (record,) = await bench.run(make_job(20 + number, memory=unwritten))
        assert (_neighbours(record), record.result.memory_version) == ([2], 4)
    await forgetter.forget_all(MEMORY)
    for number, bench in enumerate((one, two)):
        (record,) = await bench.run(make_job(30 + number, memory=unwritten))
        assert (_neighbours(record), record.result.memory_version) == ([0], 5)


ACTS = {
    "an entry": (lambda forgetter, _: forgetter.forget_versions(MEMORY, [2]), {"default": 2, "other": 1}),
    "all": (lambda forgetter, _: forgetter.forget_all(MEMORY), {"other": 1}),
    "the memory": (lambda forgetter, _: forgetter.delete(MEMORY), {"other": 1}),
    "its name": (
        lambda _, redis: MemoryMaker(redis, max_memories=9, clock_ms=now_ms).rename(
            MEMORY, MemoryName("new")
        ),
        {"other": 1},
    ),
    "every key of it": (lambda _, redis: redis.delete(meta_key(MEMORY), log_key(MEMORY)), {"other": 1}),
}


@pytest.mark.parametrize("act", ACTS)
async def test_what_was_forgotten_leaves_copies_that_nobody_reads(bench, make_job, forgetter, act):
    """Of a memory that is read no more too, and of one that is not there: no other copy loses anything."""
    other = MemorySelection(MemoryName("other"))
    await bench.run(make_job(1, num_images=3))
    await bench.run(make_job(2, memory=other))
    for number, name in enumerate(("default", "other")):
        await bench.run(make_job(10 + number, memory=MemorySelection(MemoryName(name), write=False)))
    await bench.memories.drop_forgotten()
    assert len(bench.memories.held(1)) == 2
    do, left = ACTS[act]
    await do(forgetter, bench.redis)
    await bench.memories.drop_forgotten()
    assert {key.name: num_entries for key, _, num_entries in bench.memories.held(0)} == left
    (record,) = await bench.run(make_job(20, memory=MemorySelection(NAME, write=False)))
    assert _neighbours(record) == [left.get("default", 0)]


async def test_a_replay_that_needs_a_forgotten_entry_is_gone(bench, make_job, forgetter):
    """Also as a reference; one from before the entry and one from after it are read as they were."""
    for number in range(4):
        await bench.run(make_job(number))
    (before,) = await bench.run(make_job(10, memory=MemorySelection(NAME, write=False, version=1)))
    await forgetter.forget_versions(MEMORY, [2])
    (after,) = await bench.run(make_job(11, memory=MemorySelection(NAME, write=False)))
    for number, version in enumerate((2, 3, 4)):
        (record,) = await bench.run(make_job(20 + number, memory=MemorySelection(NAME, version=version)))
        assert (record.state, record.failure.code) == (JobState.FAILED, "memory_version_gone")
        assert record.failure.param == "diversity.memory.version"
        elsewhere = MemorySelection(MemoryName("elsewhere"))
        (record,) = await bench.run(
            make_job(30 + number, memory=elsewhere, novelty=ReferenceSelection(NAME, 0.5, version))
        )
        assert (record.failure.code, record.failure.param) == (
            "memory_version_gone",
            "diversity.novelty.version",
        )
    await bench.run(make_job(40))
    for number, (first, version) in enumerate(((before, 1), (after, 5))):
        again = MemorySelection(NAME, write=False, version=version)
        (record,) = await bench.run(make_job(50 + number, memory=again))
        assert await _pixels(bench, record) == await _pixels(bench, first)


async def test_an_entry_that_is_forgotten_while_it_is_read_spoils_a_replay(bench, make_job, forgetter):
    """Between the look at the version and the choice: a replay is exact or it is none."""
    await bench.run(make_job(1, num_images=2))
    cache = bench.memories
    sync = cache.sync

    async def forget_first(*arguments, **members):
        await forgetter.forget_versions(MEMORY, [1])
        return await sync(*arguments, **members)

    cache.sync = forget_first
    (record,) = await bench.run(make_job(2, memory=MemorySelection(NAME, version=2)))
    assert record.failure.code == "memory_version_gone"


async def test_what_ran_while_all_was_forgotten_is_not_remembered(bench, make_job, forgetter):
    """The job has its image all the same. Where only some entries were forgotten, its own are remembered."""
    commit = bench.queue.commit
    acts = [lambda: forgetter.forget_versions(MEMORY, [1]), lambda: forgetter.forget_all(MEMORY)]
    await bench.run(make_job(1))
    for number, (act, is_remembered) in enumerate(zip(acts, (True, False), strict=True)):

        async def forget_first(*arguments, act=act, **members):
            await act()
            return await commit(*arguments, **members)

        bench.jobs_seen.commit = forget_first
        (record,) = await bench.run(make_job(10 + number))
        assert record.state is JobState.SUCCEEDED
        held = await bench.memory_store.read_entries_after(MEMORY, 0)
        assert (record.result.images[0].image_id in {entry.image_id for _, entry in held}) is is_remembered
    bench.jobs_seen.commit = commit
    await bench.run(make_job(20))
    assert await bench.memory_store.count(MEMORY) == 1


async def test_a_deleted_memory_comes_back_empty(bench, make_job, forgetter):
    """A worker that had a copy of it starts from nothing, and its versions go on."""
    await bench.run(make_job(1, num_images=2))
    await forgetter.delete(MEMORY)
    (first,) = await bench.run(make_job(2))
    (second,) = await bench.run(make_job(3))
    assert (_neighbours(first), _neighbours(second)) == ([0], [1])
    assert await bench.version() == 5
    assert await bench.redis.ttl(meta_key(MEMORY)) == -1


async def test_forgetting_under_load(open_bench, make_job, forgetter):
    """Two workers and steady acts: no job that begins after an acknowledgement has more neighbours than there are."""
    benches = [open_bench("one"), open_bench("two")]
    await benches[0].run(make_job(1, num_images=8))
    held, numbers, one_reserves = [8], iter(range(100, 1000)), asyncio.Lock()

    async def read(bench):
        while held[0] > 0:
            job = make_job(next(numbers), memory=MemorySelection(NAME, write=False))
            async with one_reserves:
                most = held[0]
                reserved = await bench.reserve(job)
            await bench.runner.run(reserved)
            record = await bench.jobs.get(job.tenant_id, job.job_id)
            assert record.result.images[0].num_neighbours <= most

    async def forget():
        for version in (8, 1, 3, 2, 7, 4, 6, 5):
            await asyncio.sleep(0.05)
            await forgetter.forget_versions(MEMORY, [version])
            held[0] -= 1

    await asyncio.gather(forget(), *(read(bench) for bench in benches))
