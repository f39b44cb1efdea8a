"""The same way of a job on every kind of server: Redis 6.2, one slot of a Redis Cluster at a time, and after a kill."""

import asyncio
import os
import random
import signal
from dataclasses import replace

import pytest
from patience import PATIENCE_S, eventually

from app.domain.ids import ModelId, WorkerId
from app.domain.job import JobState
from app.domain.result import Failure
from app.errors import StoreUnavailable
from app.jobs.types import Cancelled, Standing
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")
MODELS = (MODEL,)


async def _go_every_way(bench):
    """Accepts, commits, fails, gives back and sweeps jobs of two tenants; checks the ends."""
    store, queue, sweeper = bench.store(), bench.queue(), bench.sweeper()
    worker_id = await bench.live("w1")
    jobs = [bench.job(tenant, num_images=2) for tenant in ("acme", "bolt") for _ in range(3)]
    late = bench.job(timeout_ms=5)
    for job in [*jobs, late]:
        await store.accept(job)
    bench.now_ms += 10
    async with queue:
        held = await queue.reserve(MODELS, worker_id, 12, 0)
        assert sorted(reserved.job.job_id for reserved in held) == sorted(job.job_id for job in jobs)
        assert await queue.give_back(held[0])
        assert await queue.fail(held[1], Failure("oom", "out of memory"))
        again = await queue.reserve(MODELS, worker_id, 12, 0)
        for reserved in [*held[2:], *again]:
            assert await queue.commit(reserved, bench.result(reserved), bench.entries(reserved))
    lost = bench.job()
    await store.accept(lost)
    bench.limits = replace(bench.limits, max_attempts=2)
    for _ in range(2):
        [held_once] = await queue.reserve(MODELS, worker_id, 1, 0)
        await queue.begin(held_once)
        assert await queue.extend_leases(worker_id) == 0
        assert (await bench.reclaimer().reclaim(MODEL)).num_redelivered == 1
        assert await queue.extend_leases(worker_id) == 1
    assert await bench.queue().reserve(MODELS, worker_id, 1, 0) == []
    assert [letter.job_id for letter in await store.list_dead_letters(MODEL)] == [lost.job_id]
    waiting, running = bench.job(), bench.job()
    await store.accept(running)
    [held_once] = await queue.reserve(MODELS, worker_id, 1, 0)
    await store.accept(waiting)
    assert await store.cancel(waiting.tenant_id, waiting.job_id) is JobState.CANCELLED
    assert await store.cancel(running.tenant_id, running.job_id) is JobState.RUNNING
    assert await queue.standing(held_once) is Standing.CANCELLED
    assert await queue.commit(held_once, bench.result(held_once), bench.entries(held_once)) == Cancelled()
    await bench.registry().remove(worker_id)
    await sweeper.sweep(MODELS)
    states = [
        (await store.get(job.tenant_id, job.job_id)).state for job in [*jobs, late, lost, waiting, running]
    ]
    assert states.count(JobState.SUCCEEDED) == 5
    assert states.count(JobState.FAILED) == 2
    assert states.count(JobState.CANCELLED) == 2
    assert states[6] is JobState.EXPIRED
    assert sum([await bench.memories().count(bench.memory(tenant)) for tenant in ("acme", "bolt")]) == 10
    assert await store.count_open(MODEL) == 0


async def test_on_redis_6_2(redis_6_2, make_bench):
    """Every command and script works on the oldest server we promise."""
    await _go_every_way(make_bench(redis_6_2))


async def test_on_a_cluster_no_command_crosses_slots(cluster_node, make_bench):
    """A node of a cluster refuses scripts and commands whose keys lie in two slots; none of ours do."""
    await _go_every_way(make_bench(cluster_node))


@pytest.mark.parametrize("seed", range(3))
async def test_a_killed_server_has_everything_it_acknowledged(tmp_path, make_bench, seed):
    """SIGKILL amid accepts and commits: each acknowledged one is there after the restart, no entry is there twice."""
    dice = random.Random(seed)
    server = EmbeddedRedis.start(tmp_path)
    client = connect(server.url, timeout_s=PATIENCE_S)
    bench = make_bench(client)
    accepted, committed = [], []

    async def accept():
        while True:
            job = bench.job()
            await bench.store().accept(job)
            accepted.append(job)

    async def work():
        queue = bench.queue()
        while True:
            for reserved in await queue.reserve(MODELS, WorkerId("w1"), 4, 0):
                if await queue.commit(reserved, bench.result(reserved), bench.entries(reserved)):
                    committed.append(reserved.job)  # noqa: PERF401 - counted meanwhile

    tasks = [asyncio.create_task(accept()), asyncio.create_task(accept()), asyncio.create_task(work())]
    await eventually(lambda: len(committed) >= 5)
    await asyncio.sleep(dice.random() * 0.05)
    os.kill(server.pid, signal.SIGKILL)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [StoreUnavailable] * 3
    await client.aclose()
    server.stop()

    with EmbeddedRedis.start(tmp_path) as again:
        bench.redis = client = connect(again.url)
        await _check_kept(bench, accepted, committed)
        await client.aclose()


async def _check_kept(bench, accepted, committed):
    for job in accepted:
        await bench.store().get(job.tenant_id, job.job_id)
    for job in committed:
        assert (await bench.store().get(job.tenant_id, job.job_id)).state is JobState.SUCCEEDED
    log = await bench.memories().read_entries_after(bench.memory(), 0, 10_000)
    kept = [entry.image_id for _, entry in log]
    assert [version for version, _ in log] == list(range(1, len(log) + 1))
    assert len(set(kept)) == len(kept)
    assert {f"{job.job_id}-0" for job in committed} <= set(kept)
    assert len(kept) <= len(committed) + 1  # a commit whose answer was lost
