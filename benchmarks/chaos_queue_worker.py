"""A worker of `chaos_queue.py`: the real queue, leases, sweeps and image store around an engine that only sleeps.

    python benchmarks/chaos_queue_worker.py REDIS_URL IMAGE_URL NAME SEED

A job whose prompt begins with `poison` kills it. It runs until it is killed.
"""

import asyncio
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

import numpy as np
from chaos_check import MEMORY, MODEL, POISON, SPACE

from app.domain.ids import WorkerId, image_id
from app.domain.result import Failure, GeneratedImage, GenerationResult
from app.errors import ServiceError, StoreUnavailable
from app.images.store import ImageStore, image_key
from app.jobs.leases import JobReclaimer
from app.jobs.queue import JobQueue
from app.jobs.sweeper import JobSweeper
from app.jobs.transitions import CANCELLED
from app.jobs.types import JobLimits, ReservedJob, Standing, WorkerInfo
from app.jobs.workers import WorkerRegistry, now_ms
from app.memory.codec import MemoryEntry, encode_entry
from app.redis.connection import connect

LEASE_S = 2.0
BEAT_S = 0.4
SWEEP_S = 1.0
LIMITS = JobLimits(max_open=200)
"""Clients wait beyond it: where workers hardly come up between kills, on a busy machine, there is no more to make up."""
_NUM_STEPS = 4
_STEP_S = 0.01
_OUTAGE_PAUSE_S = 0.2
_PIXELS = b"\x89PNG and so on"


async def _repeat(operation: Callable[[], Awaitable[object]], interval_s: float) -> None:
    while True:
        with suppress(ServiceError):
            await operation()
        await asyncio.sleep(interval_s)


async def _until_done(operation: Callable[[], Awaitable[object]]) -> object:
    """The operation's value, however long Redis is away."""
    while True:
        try:
            return await operation()
        except StoreUnavailable:
            await asyncio.sleep(_OUTAGE_PAUSE_S)


async def _run(queue: JobQueue, images: ImageStore, reserved: ReservedJob, dice: random.Random) -> None:
    """One job, as the real worker treats it: begun, looked after at every step, stored, committed."""
    job = reserved.job
    standing = await _until_done(lambda: queue.begin(reserved))
    if job.generation.prompt.startswith(POISON):
        os.kill(os.getpid(), signal.SIGKILL)
    for _ in range(_NUM_STEPS):
        if standing is not Standing.OURS:
            break
        await asyncio.sleep(2 * _STEP_S * dice.random())
        standing = await _until_done(lambda: queue.standing(reserved))
    if standing is Standing.CANCELLED:
        await _until_done(lambda: queue.fail(reserved, CANCELLED))
    elif standing is Standing.OURS and dice.random() < 0.02:
        await _until_done(lambda: queue.fail(reserved, Failure("out_of_memory", "no room")))
    elif standing is Standing.OURS:
        await _commit(queue, images, reserved)


async def _commit(queue: JobQueue, images: ImageStore, reserved: ReservedJob) -> None:
    job, made, entries = reserved.job, [], []
    for index, seed in enumerate(job.generation.seeds):
        name = image_id(job.job_id, index)
        key = image_key(job.tenant_id, job.job_id, reserved.fence, index)
        await images.put(key, _PIXELS)
        made.append(GeneratedImage(name, seed, key, len(_PIXELS), 0, None, 0.0))
        half = np.full(4, 0.5, np.float16)
        entries.append(encode_entry(MemoryEntry(name, seed, now_ms(), half, half)))
    result = GenerationResult(tuple(made), SPACE, MEMORY, 0)
    await _until_done(lambda: queue.commit(reserved, result, entries))


async def _work(redis_url: str, image_url: str, name: str, dice: random.Random) -> None:
    redis = connect(redis_url, timeout_s=2.0)
    images, worker_id = ImageStore.open(image_url, flush=lambda _path: None), WorkerId(name)
    registry = WorkerRegistry(redis, ttl_s=LEASE_S)
    reclaimer = JobReclaimer(redis, LIMITS, lease_s=LEASE_S)
    sweeper = JobSweeper(redis, LIMITS, registry, interval_s=SWEEP_S)
    queue = JobQueue(redis, LIMITS)
    info = WorkerInfo(worker_id, "ready", (MODEL,), now_ms())
    await _until_done(lambda: registry.beat(info))
    await _until_done(queue.__aenter__)
    chores = [
        _repeat(lambda: registry.beat(info), BEAT_S),
        _repeat(lambda: queue.extend_leases(worker_id), BEAT_S),
        _repeat(lambda: reclaimer.reclaim(MODEL), BEAT_S),
        _repeat(lambda: sweeper.sweep((MODEL,)), SWEEP_S),
    ]
    async with asyncio.TaskGroup() as group:
        for chore in chores:
            group.create_task(chore)
        while True:
            try:
                held = await queue.reserve((MODEL,), worker_id, 4, 500)
            except StoreUnavailable:
                await asyncio.sleep(_OUTAGE_PAUSE_S)
                continue
            alone = [one for one in held if one.runs_alone]
            for one in alone:
                await _run(queue, images, one, dice)
            together = [_run(queue, images, one, dice) for one in held if not one.runs_alone]
            await asyncio.gather(*together)


if __name__ == "__main__":
    given_redis, given_images, given_name, given_seed = sys.argv[1:]
    asyncio.run(_work(given_redis, given_images, given_name, random.Random(given_seed)))
