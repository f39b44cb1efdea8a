"""A job's life as a state machine: Hypothesis chooses the moves, the scripts are the real ones, on a real Redis.

Workers die or freeze with jobs in hand, leases run out, calls break off between any two commands with the answer lost or
not, jobs are cancelled and expire. A ghost may do whatever a worker may. What must hold is checked after every move, and
at the end the queue is worked off: every accepted job has ended, once.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from app.domain.ids import ModelId, TenantId, WorkerId
from app.domain.job import Job, JobState
from app.domain.result import Failure
from app.errors import NotFound, StoreUnavailable
from app.jobs import keys
from app.jobs.queue import JobQueue
from app.jobs.store import JobStore
from app.jobs.types import Cancelled, Committed, JobLimits, ReservedJob, Standing
from app.memory.codec import decode_entry
from app.memory.store import MemoryStore
from app.redis.connection import connect

MODEL = ModelId("toy")
TENANTS = ("acme", "bolt")
NUM_WORKERS = 3
OOM = Failure("oom", "out of memory")


@dataclass(frozen=True)
class Move:
    """What happens next: which of the candidates, and how it varies.

    `breaks`: after how many commands the call breaks off, and whether the last one reached the server.
    """

    name: str
    number: int
    extra: int
    breaks: tuple[int, bool] | None


_NAMES = ["accept"] * 3 + ["reserve"] * 6 + ["begin"] * 4 + ["commit"] * 6 + ["cancel"] * 3 + ["reclaim"] * 3
_NAMES += ["fail", "give_back", "give_back", "die", "die", "extend", "sweep", "sweep"]
MOVES = st.lists(
    st.builds(
        Move,
        st.sampled_from(_NAMES),
        st.sampled_from([0, 0, 0, 1, 1, 2, 3, 5]),
        st.integers(0, 3),
        st.one_of(st.none(), st.none(), st.tuples(st.integers(0, 5), st.booleans())),
    ),
    min_size=20,
    max_size=60,
)


class BreakingRedis(Redis):
    """Loses its connection at the command that it was told, before or after the server has done it."""

    left = 0
    is_done = False

    async def execute_command(self, *arguments, **options):
        """The command, or a lost connection for good."""
        if self.left == 0:
            if self.is_done:
                self.is_done = False
                await super().execute_command(*arguments, **options)
            raise RedisConnectionError("lost")
        self.left -= 1
        return await super().execute_command(*arguments, **options)


@dataclass
class World:
    """What clients, workers and their failures have done."""

    bench: Any
    store: JobStore  # one that works
    memories: MemoryStore
    jobs: list[Job] = field(default_factory=list)
    held: list[tuple[JobQueue, ReservedJob]] = field(default_factory=list)  # also what ghosts hold
    ends: dict[str, tuple[Any, ...]] = field(
        default_factory=dict
    )  # how each job was first seen to have ended
    cancels: set[str] = field(default_factory=set)  # acknowledged
    workers: list[tuple[WorkerId, JobQueue]] = field(default_factory=list)
    num_workers: int = 0

    async def new_worker(self) -> tuple[WorkerId, JobQueue]:
        """One more, which lives."""
        self.num_workers += 1
        return await self.bench.live(f"w{self.num_workers}"), self.bench.queue()

    def client(self, move: Move) -> Redis:
        """A connection that breaks as told."""
        if move.breaks is None:
            return self.bench.redis
        client = BreakingRedis(connection_pool=self.bench.redis.connection_pool)
        client.left, client.is_done = move.breaks
        return client

    async def make(self, move: Move) -> None:
        """One move; some are none for want of a candidate."""
        if move.name in ("begin", "commit", "fail", "give_back"):
            if self.held:
                queue, reserved = self.held[-1 - move.number % len(self.held)]
                if move.breaks is not None:
                    await self._end(self.bench.queue(self.client(move)), reserved, move)
                await self._end(queue, reserved, move)
        elif move.name != "cancel" or self.jobs:
            await getattr(self, move.name)(move)

    async def _end(self, queue: JobQueue, reserved: ReservedJob, move: Move) -> None:
        is_cancelled = reserved.job.job_id in self.cancels
        try:
            if move.name == "begin":
                standing = await queue.begin(reserved)
                assert not (is_cancelled and standing is Standing.OURS)
                assert await queue.standing(reserved) is standing
            elif move.name == "commit":
                done = await queue.commit(reserved, self.bench.result(reserved), self.bench.entries(reserved))
                if done is not None:
                    assert isinstance(done, Cancelled if is_cancelled else Committed)
                    assert (await self.record(reserved.job)).fence == reserved.fence
            elif move.name == "fail":
                state = await queue.fail(reserved, OOM)
                assert not (is_cancelled and state is JobState.FAILED)
            else:
                await queue.give_back(reserved, is_forgiven=move.extra > 1)
        except StoreUnavailable:
            assert move.breaks is not None

    async def accept(self, move: Move) -> None:
        """A client asks, and asks again where it got no answer."""
        job = self.bench.job(
            TENANTS[move.number % 2],
            num_images=1 + move.extra % 2,
            timeout_ms=10**9 if move.extra else 20_000,
        )
        await _quietly(self.bench.store(self.client(move)).accept(job))
        await self.store.accept(job)
        self.jobs.append(job)

    async def reserve(self, move: Move) -> None:
        """A worker asks for jobs."""
        worker_id, queue = self.workers[move.number % NUM_WORKERS]
        asked = queue if move.breaks is None else self.bench.queue(self.client(move))
        found = await _quietly(asked.reserve((MODEL,), worker_id, 1 + move.extra, 0))
        self.held += [(queue, reserved) for reserved in found or []]

    async def cancel(self, move: Move) -> None:
        """A client cancels; from its acknowledgement on the job can end in no other way. No other job is touched."""
        job = self.jobs[-1 - move.number % len(self.jobs)]
        others = [one for one in self.jobs if one is not job]
        before = [await self.record(one) for one in others]
        state = await _quietly(self.bench.store(self.client(move)).cancel(job.tenant_id, job.job_id))
        asked = (await self.record(job)).cancel_requested_at_ms is not None
        assert asked or state not in (JobState.CANCELLED, JobState.RUNNING)
        if asked:
            self.cancels.add(job.job_id)
        assert [await self.record(one) for one in others] == before

    async def die(self, move: Move) -> None:
        """A worker vanishes with what it holds, and another comes."""
        await self.bench.registry().remove(self.workers[move.number % NUM_WORKERS][0])
        self.workers[move.number % NUM_WORKERS] = await self.new_worker()

    async def reclaim(self, move: Move) -> None:
        """All leases have run out."""
        await _quietly(self.bench.reclaimer(self.client(move)).reclaim(MODEL))

    async def extend(self, move: Move) -> None:
        """A worker says that it lives; it takes nothing from others by that."""
        worker_id, queue = self.workers[move.number % NUM_WORKERS]
        queue._held |= {(MODEL, stream_id) for stream_id in await self.pending()}
        before = await self.pending()
        await queue.extend_leases(worker_id)
        assert await self.pending() == before

    async def sweep(self, move: Move) -> None:
        """Time passes, and a sweep comes."""
        self.bench.now_ms += (1_000, 6_000, 30_000, 70_000)[move.extra]
        await _quietly(self.bench.sweeper(self.client(move)).sweep((MODEL,)))

    async def pending(self) -> dict[str, bytes]:
        """Which consumer has which entry."""
        redis = self.bench.redis
        if not await redis.exists(keys.stream_key(MODEL)):
            return {}
        found = await redis.xpending_range(keys.stream_key(MODEL), keys.GROUP, "-", "+", 1000)
        return {entry["message_id"].decode(): entry["consumer"] for entry in found}

    async def record(self, job: Job):
        """A job's record; every accepted one has one."""
        return await self.store.get(job.tenant_id, job.job_id)

    async def check(self) -> None:
        """An end stands, and is `cancelled` where that was acknowledged; memories hold what succeeded, once."""
        kept, made = Counter(), Counter()
        for job in self.jobs:
            record = await self.record(job)
            if record.state.is_terminal:
                end = (record.state, record.result, record.failure, record.fence)
                assert self.ends.setdefault(job.job_id, end) == end
                assert (record.state is JobState.CANCELLED) == (job.job_id in self.cancels)
            if record.result is not None:
                made.update(image.image_id for image in record.result.images)
        for tenant in TENANTS:
            log = await self.memories.read_after(self.bench.memory(tenant), 0, 10_000)
            assert [version for version, _ in log] == list(range(1, len(log) + 1))
            kept.update(decode_entry(data).image_id for _, data in log)
        assert kept == made

    async def work_off(self) -> None:
        """Sweeps, leases that run out, and a worker, until nothing is open."""
        worker_id, queue = WorkerId("last"), self.bench.queue()
        for _ in range(30):
            self.bench.now_ms += 6_000
            await self.bench.live(worker_id)
            await self.bench.reclaimer().reclaim(MODEL)
            await self.bench.sweeper().sweep((MODEL,))
            for reserved in await queue.reserve((MODEL,), worker_id, 50, 0):
                if await queue.begin(reserved) is Standing.OURS:
                    await queue.commit(reserved, self.bench.result(reserved), self.bench.entries(reserved))
                else:
                    await queue.fail(reserved, Failure("cancelled", "the job was cancelled"))
            if not await self.store.count_open(MODEL) and not await self.pending():
                return
        raise AssertionError("jobs are still open")

    async def check_end(self) -> None:
        """Nothing is stranded or left behind, and there is one dead letter for each poison job."""
        await self.check()
        poison = []
        for job in self.jobs:
            record = await self.record(job)
            assert record.state.is_terminal, job.job_id
            if record.failure is not None and record.failure.code == "poison":
                poison.append(job.job_id)
            sets = (keys.waiting_key(job.tenant_id, MODEL), keys.released_key(job.tenant_id, MODEL))
            assert await self.bench.redis.exists(*sets) == 0
        letters = await self.store.list_dead_letters(MODEL)
        assert sorted(letter.job_id for letter in letters) == sorted(poison)


async def _quietly(call):
    """The call's value; None where the connection was lost."""
    try:
        return await call
    except StoreUnavailable:
        return None


async def _live(url, make_bench, moves):
    redis = connect(url)
    try:
        await redis.flushall()
        await redis.config_set("appendfsync", "no")  # nobody pulls the plug here, and disks are slow
        bench = make_bench(redis, JobLimits(max_released_per_tenant=2, max_attempts=1))
        world = World(bench, bench.store(), bench.memories())
        world.workers = [await world.new_worker() for _ in range(NUM_WORKERS)]
        for move in moves:
            await world.make(move)
            await world.check()
        await world.work_off()
        await world.check_end()
    finally:
        await redis.config_set("appendfsync", "always")
        await redis.aclose()


_ALL = list(HealthCheck)


@settings(max_examples=40, deadline=None, suppress_health_check=_ALL)
@given(moves=MOVES)
def test_every_life_of_a_job_ends_once(redis_server, make_bench, moves):
    """Whatever order of deliveries, crashes, expired leases, ghosts and cancels: each job ends once, and nothing is left."""
    asyncio.run(_live(redis_server.url, make_bench, moves))


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=_ALL)
@given(moves=MOVES)
def test_every_life_of_a_job_ends_once_at_length(redis_server, make_bench, moves):
    """The same, for many more lives."""
    asyncio.run(_live(redis_server.url, make_bench, moves))


@pytest.mark.anyio
async def test_a_job_nobody_accepted_cannot_be_cancelled(bench):
    """NotFound, for an unknown id and for another tenant's, whose job stays as it is."""
    job = bench.job()
    await bench.store().accept(job)
    for tenant_id, job_id in ((TenantId("bolt"), job.job_id), (job.tenant_id, bench.job().job_id)):
        with pytest.raises(NotFound):
            await bench.store().cancel(tenant_id, job_id)
    assert (await bench.store().get(job.tenant_id, job.job_id)).state is JobState.QUEUED
