"""Heartbeats."""

import pytest
from patience import eventually

from app.domain.ids import ModelId, WorkerId
from app.jobs.keys import worker_index_key, worker_key
from app.jobs.types import WorkerInfo
from app.jobs.workers import WorkerRegistry, make_worker_id

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")


async def test_a_live_worker_tells_what_it_serves(bench):
    """Its models count as served while it loads and when it is ready, not while it drains."""
    registry = bench.registry()
    for phase, served in (("loading", True), ("ready", True), ("draining", False)):
        info = WorkerInfo(WorkerId("w1"), phase, (MODEL,), 5)
        await registry.beat(info)
        assert await registry.list_workers() == [info]
        assert await registry.serving(MODEL) is served
    assert not await registry.serving(ModelId("other"))


async def test_a_silent_worker_is_dead_and_forgotten(redis):
    """When the heartbeat has run out, nothing is left of the worker, in the index neither."""
    registry, worker_id = WorkerRegistry(redis, ttl_s=60), WorkerId("w1")
    await registry.beat(WorkerInfo(worker_id, "ready", (MODEL,), 5))
    assert await registry.is_alive(worker_id)
    assert 0 < await redis.pttl(worker_key(worker_id)) <= 60_000
    await redis.pexpire(worker_key(worker_id), 1)

    async def is_dead():
        return not await registry.is_alive(worker_id)

    await eventually(is_dead)
    assert await registry.list_workers() == []
    assert await redis.zcard(worker_index_key()) == 0


async def test_a_worker_that_cannot_be_read_hides_no_other(bench, redis):
    """One of another release, say: it is left out of the list, but it lives, so its jobs are not lost."""
    registry = bench.registry()
    worker_id, strange = await bench.live("w1"), await bench.live("w2")
    await redis.set(worker_key(strange), b'{"release": 99}', keepttl=True)
    assert [info.worker_id for info in await registry.list_workers()] == [worker_id]
    assert await registry.is_alive(strange)


async def test_a_stopped_worker_is_gone_at_once(bench):
    """A clean stop does not wait for the heartbeat to run out, and may be said twice."""
    registry = bench.registry()
    worker_id = await bench.live("w1")
    await registry.remove(worker_id)
    await registry.remove(worker_id)
    assert await registry.list_workers() == []


def test_each_start_of_a_worker_has_its_own_id():
    """Two ids of one process differ."""
    assert make_worker_id() != make_worker_id()
