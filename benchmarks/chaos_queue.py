"""Kills workers and Redis at random under clients of the queue itself; then every job is counted.

    python benchmarks/chaos_queue.py --seconds 600

The quick sister of `chaos.py`, without HTTP and engine. A real Redis with `appendfsync always`, processes that work as workers do but for the images, clients that repeat what was
not answered. Some jobs kill whoever begins them. At the end all is worked off, and `chaos_check.py` compares what clients
were told with what is there. Exit code 1 where anything is wrong; `--plant loss` and `--plant double` spoil the end on
purpose, to show that it would be seen. The seed is printed; it fixes who is killed when, not how processes race.
"""

import argparse
import asyncio
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from chaos_check import MODEL, POISON, Findings, Told, check, plant
from chaos_queue_worker import LIMITS

from app.domain.ids import TenantId, make_job_id
from app.domain.job import Job, JobKind, JobState
from app.domain.request import Diversity, GenerationRequest
from app.errors import NotFound, QueueFull, StoreUnavailable
from app.jobs.store import JobStore
from app.jobs.workers import now_ms
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis

_WORKER = Path(__file__).parent / "chaos_queue_worker.py"
_RETRY_S = 0.1
_STALLED_S = 120.0


@dataclass(frozen=True)
class Plan:
    """How long, how much, and by which dice."""

    seed: int
    seconds: float
    num_workers: int = 3
    num_clients: int = 8
    num_tenants: int = 20
    share_poison: float = 0.01
    share_cancelled: float = 0.1
    mean_pause_s: float = 0.25


@dataclass
class Scene:
    """What runs now, and what was done to it."""

    plan: Plan
    folder: Path
    server: EmbeddedRedis
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    num_started: int = 0
    kills: dict[str, int] = field(default_factory=lambda: {"worker": 0, "Redis": 0})

    @property
    def images(self) -> Path:
        """Where images lie."""
        return self.folder / "images"

    def start_worker(self) -> subprocess.Popen[bytes]:
        """One more worker, under a name of its own."""
        self.num_started += 1
        arguments = [self.server.url, self.images.as_uri(), f"w{self.num_started}"]
        seed = str(self.plan.seed + self.num_started)
        return subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, str(_WORKER), *arguments, seed], stdout=subprocess.DEVNULL
        )

    def replace_dead(self) -> None:
        """A worker for each that has ended."""
        for place, worker in enumerate(self.workers):
            if worker.poll() is not None:
                self.workers[place] = self.start_worker()

    def stop(self) -> None:
        """Ends everything."""
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.server.stop()


async def run(plan: Plan, folder: Path) -> tuple[Scene, Told]:
    """Everything until nothing is left to be done. The scene still runs its Redis."""
    scene = Scene(plan, folder, EmbeddedRedis.start(folder))
    scene.workers = [scene.start_worker() for _ in range(plan.num_workers)]
    told = Told()
    redis = connect(scene.server.url, timeout_s=2.0)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_kill(scene, random.Random(plan.seed)))
            for number in range(plan.num_clients):
                dice = random.Random(plan.seed * 1000 + number)
                group.create_task(_ask(JobStore(redis, LIMITS), plan, dice, told))
        await _drain(scene, JobStore(redis, LIMITS))
    finally:
        await redis.aclose()
        for worker in scene.workers:
            worker.kill()
            worker.wait()
    return scene, told


async def _kill(scene: Scene, dice: random.Random) -> None:
    """SIGKILL to a worker or, once in five times, to Redis; what was killed comes back."""
    ends_at_s = time.monotonic() + scene.plan.seconds
    while time.monotonic() < ends_at_s:
        await asyncio.sleep(dice.uniform(0.3, 2.0))
        if dice.random() < 0.2:
            scene.kills["Redis"] += 1
            os.kill(scene.server.pid or 0, signal.SIGKILL)
            await asyncio.to_thread(scene.server.stop)
            await asyncio.sleep(dice.uniform(0.0, 1.0))
            scene.server = await asyncio.to_thread(EmbeddedRedis.start, scene.folder)
        else:
            scene.kills["worker"] += 1
            dice.choice(scene.workers).kill()
            await asyncio.sleep(dice.uniform(0.0, 0.3))
        scene.replace_dead()


async def _ask(store: JobStore, plan: Plan, dice: random.Random, told: Told) -> None:
    """One client: jobs of any tenant, some poison, some cancelled a moment later; it repeats what got no answer."""
    ends_at_s = time.monotonic() + plan.seconds
    while time.monotonic() < ends_at_s:
        job = _make_job(plan, dice)
        if not await _accept(store, job):
            await asyncio.sleep(1)
            continue
        told.accepted[job.job_id] = job.tenant_id
        if dice.random() < plan.share_cancelled:
            await asyncio.sleep(dice.uniform(0.0, 0.3))
            await _cancel(store, job, told)
        await asyncio.sleep(dice.expovariate(1 / plan.mean_pause_s))


async def _accept(store: JobStore, job: Job) -> bool:
    while True:
        try:
            await store.accept(job)
        except StoreUnavailable:
            await asyncio.sleep(_RETRY_S)
        except QueueFull:
            return False
        else:
            return True


async def _cancel(store: JobStore, job: Job, told: Told) -> None:
    while True:
        with suppress(StoreUnavailable, NotFound):
            state = await store.cancel(job.tenant_id, job.job_id)
            if state in (JobState.CANCELLED, JobState.RUNNING):
                told.cancelled.add(job.job_id)
            return
        await asyncio.sleep(_RETRY_S)


def _make_job(plan: Plan, dice: random.Random) -> Job:
    now = now_ms()
    prompt = POISON if dice.random() < plan.share_poison else "a star"
    request = GenerationRequest(
        model=MODEL,
        prompt=prompt,
        negative_prompt="",
        num_images=dice.randint(1, 3),
        width_px=64,
        height_px=64,
        steps=4,
        guidance_scale=5.0,
        seed=dice.randrange(10**6),
        diversity=Diversity(strength=0.5),
    )
    tenant = TenantId(f"tenant-{dice.randrange(plan.num_tenants)}")
    deadline_at_ms = now + 3_600_000
    return Job(tenant, make_job_id(now, dice.randbytes(8)), JobKind.GENERATE, request, now, deadline_at_ms)


async def _drain(scene: Scene, store: JobStore) -> None:
    """Until nothing is open, or for long no fewer are. Workers that die of a job are replaced; nobody else is killed any more."""
    fewest, until_s = LIMITS.max_open + 1, time.monotonic() + _STALLED_S
    while time.monotonic() < until_s:
        scene.replace_dead()
        with suppress(StoreUnavailable):
            if not (num_open := await store.count_open(MODEL)):
                return
            if num_open < fewest:
                fewest, until_s = num_open, time.monotonic() + _STALLED_S
        await asyncio.sleep(0.2)


async def judge(scene: Scene, told: Told, fault: str | None = None) -> Findings:
    """What the checker says; after a fault was planted, where one is named."""
    redis = connect(scene.server.url)
    try:
        if fault is not None:
            await plant(redis, told.accepted.values(), fault)
        return await check(redis, scene.images, told)
    finally:
        await redis.aclose()


def main() -> int:
    """Prints the figures; 1 where the checker found a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--plant", choices=["loss", "double"], default=None)
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    print(f"seed {seed}, {given.seconds:g} s, on {platform.node()} with {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        scene, told = asyncio.run(run(Plan(seed, given.seconds), Path(folder)))
        try:
            findings = asyncio.run(judge(scene, told, given.plant))
        finally:
            scene.stop()
    killed = ", ".join(f"{what} {count} times" for what, count in scene.kills.items())
    print(f"killed: {killed}; workers started: {scene.num_started}")
    findings.show()
    return 1 if findings.faults else 0


if __name__ == "__main__":
    sys.exit(main())
