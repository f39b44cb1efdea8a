"""Kills workers, replicas of the API and Redis at random under clients over HTTP; then every job is counted.

    python benchmarks/chaos.py --jobs 5000 --kills 30

A real Redis with `appendfsync always`, real replicas of the API, workers with the weightless engine, an API key for each
tenant, clients that ask again under the same Idempotency-Key until they are answered. Some jobs kill whoever begins them,
some are cancelled while they wait or run, some are followed by clients that come back with the last event they got. Some
workers are only frozen, and wake up as zombies. At the end all is worked off and `chaos_judge.py` compares what clients
heard with what is there. Exit code 1 where anything is
wrong; `--plant` spoils the end on purpose, to show that it would be seen. The seed is printed; it fixes what is asked for
and in which order what is killed, not how processes race.
"""

import argparse
import asyncio
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from chaos_check import MODEL
from chaos_client import PATIENCE_S, Api, Heard, Wish, fulfil
from chaos_judge import PLANTS, Played, judge
from chaos_redis import WatchedServers
from chaos_scene import REDIS, REPLICA, WORKER, Scene

from app.domain.ids import TenantId
from app.errors import StoreUnavailable
from app.jobs.store import JobStore
from app.jobs.types import JobLimits
from app.redis.connection import connect
from app.tenants.keys import KeyStore

_LATEST_KILL = 0.95  # of the jobs: there is something left to be lost
_TELL_EVERY = 500


@dataclass(frozen=True)
class Plan:
    """How much, by whom, and by which dice."""

    seed: int
    num_jobs: int = 5000
    num_kills: int = 30
    num_freezes: int = 5
    num_clients: int = 8
    num_tenants: int = 20
    num_workers: int = 3
    num_replicas: int = 2
    share_poison: float = 0.002
    share_cancelled: float = 0.2
    share_followed: float = 0.2
    has_sentinels: bool = False  # whether Redis is a master that three sentinels watch


def make_wish(plan: Plan, number: int) -> Wish:
    """One of the jobs that are asked for: every other one is waited for; one in the middle of a run is poison for sure."""
    dice = random.Random(f"{plan.seed}-{number}")
    is_waited_for = number % 2 == 1
    return Wish(
        number=number,
        tenant_id=TenantId(f"tenant-{dice.randrange(plan.num_tenants)}"),
        is_waited_for=is_waited_for,
        is_poison=dice.random() < plan.share_poison or number == plan.num_jobs // 2 | 1,
        is_cancelled=not is_waited_for and dice.random() < plan.share_cancelled,
        is_followed=not is_waited_for and dice.random() < plan.share_followed,
        num_images=dice.randint(1, 3),
    )


async def play(plan: Plan, folder: Path) -> Played:
    """Everything until nothing is left to be done. Of the scene, API and Redis still run."""
    redis = WatchedServers(folder) if plan.has_sentinels else None
    scene = Scene.start(folder, plan.num_workers, plan.num_replicas, redis=redis)
    try:
        return await _play(plan, scene)
    except BaseException:
        scene.stop()
        raise


async def _play(plan: Plan, scene: Scene) -> Played:
    await scene.wait_until_ready()
    wishes = [make_wish(plan, number) for number in range(plan.num_jobs)]
    api_keys = await _make_keys(scene, sorted({wish.tenant_id for wish in wishes}))
    heard, began_s = Heard(), time.monotonic()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits) as http, asyncio.TaskGroup() as group:
        keeping = group.create_task(_keep(scene))
        async with asyncio.TaskGroup() as asking:
            asking.create_task(_kill(scene, plan, heard))
            asking.create_task(_freeze(scene, plan, heard))
            left = iter(wishes)
            for number in range(plan.num_clients):
                dice = random.Random(f"{plan.seed}-client-{number}")
                asking.create_task(_ask(Api(http, scene.urls, api_keys, heard, dice), left, asking))
        _say("all are answered, killing is over")
        await _drain(scene, heard)
        _say("all are worked off")
        await scene.wait_until_ready()  # for the judge
        keeping.cancel()
    seconds = time.monotonic() - began_s
    scene.stop_workers()
    return Played(scene, wishes, api_keys, heard, seconds)


async def _make_keys(scene: Scene, tenants: Sequence[TenantId]) -> dict[TenantId, str]:
    redis = connect(scene.redis.url)
    try:
        return {tenant: await KeyStore(redis).create(tenant) for tenant in tenants}
    finally:
        await redis.aclose()


async def _ask(api: Api, left: Iterator[Wish], group: asyncio.TaskGroup) -> None:
    """One client: one wish after another, of those that nobody has had."""
    for wish in left:
        api.heard.num_begun += 1
        if api.heard.num_begun % _TELL_EVERY == 0:
            _say(f"{api.heard.num_begun} jobs asked for")
        await fulfil(api, wish, group)


async def _kill(scene: Scene, plan: Plan, heard: Heard) -> None:
    """SIGKILL again and again, to each kind as often as its share, at least once."""
    dice = random.Random(f"{plan.seed}-kills")
    kinds = [WORKER, REPLICA, REDIS, *dice.choices([WORKER, REPLICA, REDIS], [5, 3, 2], k=plan.num_kills)]
    kinds = dice.sample(kinds[: plan.num_kills], plan.num_kills)
    async for turn in _moments(plan, plan.num_kills, heard, dice):
        await scene.kill(kinds[turn], dice)


async def _freeze(scene: Scene, plan: Plan, heard: Heard) -> None:
    """Makes zombies: workers that stop for a while, and do not know that they did."""
    dice = random.Random(f"{plan.seed}-freezes")
    async for _ in _moments(plan, plan.num_freezes, heard, dice):
        await scene.freeze(dice)


async def _moments(plan: Plan, number: int, heard: Heard, dice: random.Random) -> AsyncIterator[int]:
    """So many moments at random, by how many jobs have been asked for."""
    times = sorted(dice.uniform(0, _LATEST_KILL * plan.num_jobs) for _ in range(number))
    for turn, at in enumerate(times):
        while heard.num_begun < at:  # noqa: ASYNC110 - a number rings no bell
            await asyncio.sleep(0.02)
        await asyncio.sleep(dice.uniform(0.0, 0.2))
        yield turn


async def _keep(scene: Scene) -> None:
    """What has died comes back, a moment later."""
    while True:
        await asyncio.sleep(0.3)
        scene.replace_dead()


async def _drain(scene: Scene, heard: Heard) -> None:
    """Until nothing is open, or it has taken too long, which is a fault."""
    redis = connect(scene.redis.url, timeout_s=2.0)
    until_s = time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < until_s:
            with suppress(StoreUnavailable):
                if not await JobStore(redis, JobLimits()).count_open(MODEL):
                    return
            await asyncio.sleep(0.2)
        heard.faults.append(f"stranded: jobs are open {PATIENCE_S:g} s after the last was asked for")
    finally:
        await redis.aclose()


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


def main() -> int:
    """Prints the figures; 1 where the judge found a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    whole = ("jobs", "kills", "freezes", "clients", "tenants", "workers", "replicas")
    for name in whole:
        parser.add_argument(f"--{name}", type=int, default=getattr(Plan, f"num_{name}"))
    parser.add_argument(
        "--sentinel", action="store_true", help="Redis is a master that three sentinels watch"
    )
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--plant", choices=sorted(PLANTS), default=None)
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    plan = Plan(seed, has_sentinels=given.sentinel, **{f"num_{name}": getattr(given, name) for name in whole})
    asked = ", ".join(f"{getattr(given, name)} {name}" for name in whole)
    print(f"seed {seed}: {asked}; on {platform.node()} with {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory(prefix="sparke-chaos-") as folder:
        played = asyncio.run(play(plan, Path(folder)))
        try:
            findings = asyncio.run(judge(played, given.plant))
        finally:
            played.scene.stop()
    killed = ", ".join(f"{what} {count} times" for what, count in sorted(played.scene.killed.items()))
    started = ", ".join(f"{count} of {what}" for what, count in sorted(played.scene.started.items()))
    print(f"killed: {killed}; workers frozen {played.scene.num_frozen} times; processes started: {started}")
    print(f"{played.seconds:.0f} s, {plan.num_jobs / played.seconds:.1f} jobs/s")
    findings.show()
    return 1 if findings.faults else 0


if __name__ == "__main__":
    sys.exit(main())
