"""Commits keep to a memory's settings: frozen, capped by count, capped by age."""

import pytest

from app.domain.job import JobState
from app.errors import NotFound, VersionGone
from app.jobs.types import Committed
from app.memory.overview import MemoryOverview, MemoryShape
from app.memory.shaping import MemoryShaper

pytestmark = pytest.mark.anyio


@pytest.fixture
def shaper(bench):
    """What changes settings."""
    return MemoryShaper(bench.redis, clock_ms=bench.clock_ms)


async def _commit(bench, *, num_images=1):
    job = bench.job(num_images=num_images)
    await bench.store().accept(job)
    (reserved,) = await bench.queue().reserve((job.request.model,), await bench.live("w1"), 16, 0)
    done = await bench.queue().commit(reserved, bench.result(reserved), bench.entries(reserved))
    assert (await bench.store().get(job.tenant_id, job.job_id)).state is JobState.SUCCEEDED
    return done


async def _versions(bench):
    return [version for version, _ in await bench.memories().read_after(bench.memory(), 0, 1000)]


async def test_above_a_cap_the_oldest_go(bench, shaper):
    """With each commit; a replay of what held them is refused, one of what did not is read."""
    await _commit(bench)
    await shaper.shape(bench.memory(), {"max_entries": 5})
    held_at = {}
    for _ in range(9):
        done = await _commit(bench, num_images=2)
        version = (await bench.memories().resolve_version(bench.memory(), None)).version
        assert done == Committed(version)
        held_at[version] = await _versions(bench)
        assert len(held_at[version]) == min(5, 1 + 2 * len(held_at))
    assert held_at[version][-1] == version - 1
    for asked, held in held_at.items():
        is_whole = set(held) <= set(held_at[version])
        if is_whole:
            assert (await bench.memories().resolve_version(bench.memory(), asked)).version == asked
        else:
            with pytest.raises(VersionGone):
                await bench.memories().resolve_version(bench.memory(), asked)
    told = await bench.memories().read_forgotten(bench.memory(), 0)
    assert told.ranges == ((1, held_at[version][0] - 1),)


async def test_a_cap_is_kept_to_at_once(bench, shaper):
    """Whatever the memory holds when it is set; it can be taken away again."""
    for _ in range(20):
        await _commit(bench, num_images=10)
    await shaper.shape(bench.memory(), {"max_entries": 7})
    assert await _versions(bench) == list(range(194, 201))
    await shaper.shape(bench.memory(), {"max_entries": None})
    await _commit(bench, num_images=3)
    assert len(await _versions(bench)) == 10


async def test_what_is_too_old_goes_with_the_next_commit(bench, shaper):
    """And no sooner: who reads without writing reads it still."""
    for _ in range(4):
        await _commit(bench, num_images=2)
        bench.now_ms += 10_000
    await shaper.shape(bench.memory(), {"max_age_s": 25})
    assert len(await _versions(bench)) == 4
    bench.now_ms += 10_000
    assert len(await _versions(bench)) == 4
    await _commit(bench)
    assert await _versions(bench) == [7, 8, 10]


async def test_a_frozen_memory_takes_nothing(bench, shaper):
    """The job has its images all the same; thawed, it takes the next ones."""
    await _commit(bench)
    await shaper.shape(bench.memory(), {"frozen": 1})
    assert await _commit(bench) == Committed(None)
    stats = await MemoryOverview(bench.redis).get(bench.memory())
    assert (stats.num_entries, stats.version, stats.shape) == (1, 1, MemoryShape(is_frozen=True))
    await shaper.shape(bench.memory(), {"frozen": None, "max_age_s": 9, "max_entries": 3})
    assert await _commit(bench) == Committed(2)
    stats = await MemoryOverview(bench.redis).get(bench.memory())
    assert stats.shape == MemoryShape(max_entries=3, max_age_s=9)


async def test_a_memory_that_is_not_there_has_no_settings(bench, shaper):
    """Nor has that of another tenant; nothing is written."""
    await _commit(bench)
    with pytest.raises(NotFound):
        await shaper.shape(bench.memory("bolt"), {"frozen": 1})
    assert [name async for name in bench.redis.scan_iter(match="*{t:bolt}*")] == []
