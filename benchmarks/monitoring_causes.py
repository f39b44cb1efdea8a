"""What makes each alert fire in `monitoring.py`: real causes, each begun and ended by a context manager."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from monitoring_load import PROMPTS, Receiver, Traffic
from monitoring_scene import LEASE_S, TENANTS, TOY, Scene, Worker
from monitoring_worker import BROKEN, HUGE, POISON, Mood

from app.domain.ids import LatentSpace, MemoryName, TenantId
from app.memory.keys import MemoryKey, log_key
from app.redis.connection import connect

NOT_HERE = {"SparkeDeviceMemoryFull": "no CUDA device here: fired in rules_test.yml alone"}


@dataclass(frozen=True)
class Stage:
    """What causes act upon."""

    scene: Scene
    traffic: Traffic
    receiver: Receiver


@dataclass(frozen=True)
class Cause:
    """What is done, for how long at least, and the alerts that must fire while it lasts and clear once it has ended."""

    what: str
    alerts: tuple[str, ...]
    lasts: Callable[[Stage], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _replicas_killed(stage: Stage) -> AsyncIterator[None]:
    stage.scene.are_replicas_kept = False
    for replica in stage.scene.replicas:
        replica.kill()
    yield
    stage.scene.are_replicas_kept = True


@asynccontextmanager
async def _redis_killed(stage: Stage) -> AsyncIterator[None]:
    await asyncio.to_thread(stage.scene.kill_redis)
    yield
    await asyncio.to_thread(stage.scene.restart_redis)


@asynccontextmanager
async def _redis_paused(stage: Stage) -> AsyncIterator[None]:
    stage.scene.pause_redis()
    yield
    stage.scene.resume_redis()


def _redis_filled(room: float) -> Callable[[Stage], AbstractAsyncContextManager[None]]:
    """A maxmemory of so much times what is used."""

    @asynccontextmanager
    async def lasts(stage: Stage) -> AsyncIterator[None]:
        redis = connect(stage.scene.server.url)
        used: Any = await redis.info("memory")
        await redis.config_set("maxmemory", int(room * used["used_memory"]))
        yield
        await redis.config_set("maxmemory", 0)
        await redis.aclose()

    return lasts


@asynccontextmanager
async def _images_away(stage: Stage) -> AsyncIterator[None]:
    """A file where the folder of images was: nothing can be put."""
    images, aside = stage.scene.images, stage.scene.folder / "aside"
    images.rename(aside)
    images.write_text("no folder")
    yield
    images.unlink()
    aside.rename(images)


@asynccontextmanager
async def _workers_killed(stage: Stage) -> AsyncIterator[None]:
    """All workers of the model."""
    for worker in stage.scene.toys:
        worker.is_kept = False
        worker.process.kill()
    yield
    for worker in stage.scene.toys:
        worker.is_kept = True


@asynccontextmanager
async def _jobs_expire(stage: Stage) -> AsyncIterator[None]:
    """Workers come back to jobs whose deadlines passed while none was there."""
    async with _workers_killed(stage):
        for _ in range(15):
            for tenant in TENANTS:
                await stage.traffic.submit(PROMPTS[0], tenant=tenant, deadline_s=2)
        await asyncio.sleep(3)
    yield


@asynccontextmanager
async def _a_worker_killed(stage: Stage) -> AsyncIterator[None]:
    """One of two, with a batch in its hands, while more is asked than the other can do."""
    worker = stage.scene.toys[1]
    async with _mood(stage, Mood(step_s=1.0)), _flood(stage, 6):
        await asyncio.sleep(6)
        worker.is_kept = False
        worker.process.kill()
        yield
        worker.is_kept = True


@asynccontextmanager
async def _poison(stage: Stage) -> AsyncIterator[None]:
    """A job that ends whoever begins it."""
    await stage.traffic.submit(f"{POISON} for everybody", tenant=TENANTS[0])
    yield


@asynccontextmanager
async def _a_worker_frozen(stage: Stage) -> AsyncIterator[None]:
    """It stands still, with images that are made and not committed, until its leases are others'; then it goes on."""
    worker = stage.scene.toys[0]
    async with _mood(stage, Mood(after_s=LEASE_S + 4)), _flood(stage, 4):
        await asyncio.sleep(LEASE_S + 5)
        freezing = asyncio.create_task(_freeze_again_and_again(worker))
        yield
        freezing.cancel()
        worker.process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def _corrupt_entry(stage: Stage) -> AsyncIterator[None]:
    """Bytes that are no entry, in a memory's log; then an image that reads it."""
    tenant, name = TENANTS[0], "spoilt"
    memory = {"memory": {"name": name}}
    for _ in range(240):
        if await stage.traffic.submit(PROMPTS[0], tenant=tenant, diversity=memory) is not None:
            break
        await asyncio.sleep(0.5)  # what came before may have filled the queue
    redis = connect(stage.scene.server.url)
    key = log_key(MemoryKey(TenantId(tenant), LatentSpace(TOY), MemoryName(name)))
    newest: Any = []
    while not newest:
        await asyncio.sleep(0.5)
        newest = await redis.xrevrange(key, count=1)
    version = int(newest[0][0].partition(b"-")[0])
    await redis.xadd(key, {"e": b"no entry"}, id=f"{version + 1}-0")
    await redis.aclose()
    for _ in range(8):  # either worker reads it
        read_only = {"memory": {"name": name, "write": False}}
        await stage.traffic.submit(PROMPTS[0], tenant=tenant, diversity=read_only)
        await asyncio.sleep(0.5)
    yield


@asynccontextmanager
async def _webhooks_hang(stage: Stage) -> AsyncIterator[None]:
    stage.receiver.hangs = True
    yield
    stage.receiver.hangs = False


def _moody(mood: Mood, jobs_a_second: float = 0.0) -> Callable[[Stage], AbstractAsyncContextManager[None]]:
    """Engines in a mood, with more jobs than usual."""

    @asynccontextmanager
    async def lasts(stage: Stage) -> AsyncIterator[None]:
        async with _mood(stage, mood), _flood(stage, jobs_a_second):
            yield

    return lasts


def _asked_for(prompt: str, pause_s: float) -> Callable[[Stage], AbstractAsyncContextManager[None]]:
    """Jobs of a kind, again and again."""

    async def ask(stage: Stage) -> None:
        while True:
            await stage.traffic.submit(prompt)
            await asyncio.sleep(pause_s)

    @asynccontextmanager
    async def lasts(stage: Stage) -> AsyncIterator[None]:
        async with _beside(ask(stage)):
            yield

    return lasts


@asynccontextmanager
async def _mood(stage: Stage, mood: Mood) -> AsyncIterator[None]:
    mood.write(stage.scene.mood)
    try:
        yield
    finally:
        Mood().write(stage.scene.mood)


@asynccontextmanager
async def _flood(stage: Stage, jobs_a_second: float) -> AsyncIterator[None]:
    if not jobs_a_second:
        yield
        return
    async with _beside(stage.traffic.flood(jobs_a_second)):
        yield


@asynccontextmanager
async def _beside(work: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _freeze_again_and_again(worker: Worker) -> None:
    while True:
        worker.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(LEASE_S + 2)
        worker.process.send_signal(signal.SIGCONT)
        await asyncio.sleep(LEASE_S + 6)


ROUNDS = (  # causes of one round last side by side
    (Cause("both API replicas killed", ("SparkeApiDown",), _replicas_killed),),
    (Cause("Redis killed", ("SparkeStoreAway", "SparkeApiErrors"), _redis_killed),),
    (Cause("Redis stopped (SIGSTOP)", ("SparkeStoreAway",), _redis_paused),),
    (
        Cause("Redis at 96 % of its maxmemory", ("SparkeRedisFull",), _redis_filled(1.04)),
        Cause("a file in place of the folder of images", ("SparkeStoreAway",), _images_away),
    ),
    (Cause("Redis beyond its maxmemory", ("SparkeRedisNoRoom", "SparkeStoreAway"), _redis_filled(0.95)),),
    (Cause("a job that kills its workers", ("SparkeDeadLetters", "SparkeJobsRedelivered"), _poison),),
    (
        Cause("jobs that raise", ("SparkeJobsFailing",), _asked_for(f"{BROKEN} again", 0.2)),
        Cause("jobs that have no room", ("SparkeOutOfMemory",), _asked_for(f"{HUGE} again", 1.0)),
    ),
    (Cause("both workers killed", ("SparkeNoWorkerReady", "SparkeApiErrors"), _workers_killed),),
    (Cause("jobs that expired while no worker was there", ("SparkeJobsRepaired",), _jobs_expire),),
    (Cause("engines that hang", ("SparkeJobsStuck",), _moody(Mood(hangs=True))),),
    (
        Cause(
            "a worker frozen for longer than its leases, again and again",
            ("SparkeCommitFailures",),
            _a_worker_frozen,
        ),
    ),
    (
        Cause(
            "one of two workers killed under load",
            ("SparkeTargetDown", "SparkeWorkersLost", "SparkeJobsRedelivered"),
            _a_worker_killed,
        ),
    ),
    (
        Cause(
            "an engine 100 times as slow, under load",
            ("SparkeStepSlow", "SparkeQueueSlow", "SparkeJobsOld", "SparkeBacklogGrowing", "SparkeQueueFull"),
            _moody(Mood(step_s=1.0), 5),
        ),
    ),
    (
        Cause("an entry overwritten in Redis", ("SparkeMemoryCorrupt",), _corrupt_entry),
        Cause("an engine whose images are alike", ("SparkeDiversityCollapsed",), _moody(Mood(is_dull=True))),
        Cause("a receiver of webhooks that does not answer", ("SparkeWebhooksStuck",), _webhooks_hang),
    ),
)
