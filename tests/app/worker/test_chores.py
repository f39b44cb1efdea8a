"""What a worker does beside its jobs, where Redis takes no writes."""

import asyncio

import pytest
from patience import eventually

from app.domain.ids import ModelId
from app.jobs.types import WorkerInfo
from app.jobs.workers import WorkerRegistry
from app.redis.cancelling import end_task
from app.settings import Settings
from app.worker.chores import Desk, extend_leases, reclaim, sweep
from app.worker.heartbeat import Heartbeat

pytestmark = pytest.mark.anyio

SETTINGS = Settings(heartbeat_interval_s=0.05, sweep_interval_s=0.05)
MODELS = (ModelId("toy"),)
FULL, ALONE = ("maxmemory", 1), ("min-replicas-to-write", 1)


async def _beat(desk, _queue):
    info = WorkerInfo(desk.worker_id, "ready", MODELS, started_at_ms=1)
    await Heartbeat(desk.registry, info, interval_s=0.05, metrics=desk.metrics).run()


CHORES = {
    "heartbeat": (_beat, FULL),
    "reclaims": (lambda desk, _queue: reclaim(desk, MODELS), FULL),
    "sweep": (lambda desk, _queue: sweep(desk, MODELS), FULL),
    "leases": (lambda desk, queue: extend_leases(desk, (queue,)), ALONE),  # they need no more memory
}


@pytest.fixture
async def desk(bench, redis):
    """What the chores share."""
    registry = WorkerRegistry(redis)
    where = bench.parts.patience, bench.stop, bench.device, bench.worker_id
    yield Desk(SETTINGS, redis, registry, bench.metrics, *where)
    for name, _ in (FULL, ALONE):
        await redis.config_set(name, 0)


async def test_a_full_redis_is_no_error_to_who_waits_for_jobs(desk, bench):
    """There is nothing to write where there is nothing to reserve."""
    await desk.redis.config_set(*FULL)
    assert await bench.queue.reserve(MODELS, desk.worker_id, 1, 0) == []


@pytest.mark.parametrize("chore", CHORES)
async def test_a_redis_that_takes_no_writes_is_counted_by_each_chore(desk, bench, make_job, chore):
    """By itself: where there are no jobs, no other call fails."""
    work, (name, value) = CHORES[chore]
    await bench.reserve(make_job(1))
    await desk.redis.config_set(name, value)
    task = asyncio.create_task(work(desk, bench.queue))

    def num_errors():
        assert not task.done()
        return desk.metrics.registry.get_sample_value("sparke_store_errors_total", {"store": "redis"})

    await eventually(num_errors)
    await end_task(task)
