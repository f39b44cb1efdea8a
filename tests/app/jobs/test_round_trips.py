"""How often Redis is asked: what each step of a job's life costs, and a worker that has nothing to do."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from patience import eventually
from redis.asyncio import Redis

from app.domain.ids import JobId, ModelId, TenantId
from app.domain.job import JobRecord
from app.jobs.store import JobStore
from app.jobs.waiter import JobWaiter
from app.redis.connection import connect

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")
Count = Callable[[Awaitable[Any]], Awaitable[int]]


@asynccontextmanager
async def _counting(redis: Redis, redis_url: str) -> AsyncIterator[Count]:
    """A function that says how many commands reach Redis while something is awaited; not those inside scripts, nor those of a new connection."""
    own = connect(redis_url)
    async with own.monitor() as monitor:

        async def until(word: str) -> int:
            await redis.echo(word)
            num_heard = 0
            while (heard := await monitor.next_command())["command"] != f"ECHO {word}":
                is_of_connection = heard["command"].startswith(("CLIENT ", "PING"))
                num_heard += heard["client_type"] != "lua" and not is_of_connection
            return num_heard

        async def count(deed: Awaitable[Any]) -> int:
            await until("begin")
            await deed
            return await until("end")

        yield count
    await own.aclose()


async def test_a_job_alone_costs_a_dozen_commands(bench, redis_url):
    """Three to accept it, six to find and start it, three until it is closed; no look in vain by a worker that listens."""
    worker_id, store, queue = await bench.live("w1"), bench.store(), bench.queue(poll_s=600)
    await store.accept(bench.job())
    [first] = await queue.reserve((MODEL,), worker_id, 4, 0)
    await queue.begin(first)
    await queue.commit(first, bench.result(first), [])  # the server knows every script by now
    async with queue, _counting(bench.redis, redis_url) as count:
        await queue.reserve((MODEL,), worker_id, 4, 50)
        assert await count(store.accept(bench.job())) == 3
        finding = asyncio.create_task(queue.reserve((MODEL,), worker_id, 4, 60_000))
        assert await count(finding) == 6
        [reserved] = finding.result()
        assert await count(queue.reserve((MODEL,), worker_id, 3, 50)) == 0
        assert await count(queue.begin(reserved)) == 1
        assert await count(queue.commit(reserved, bench.result(reserved), [])) == 2


async def test_eight_jobs_cost_four_commands_each_to_start(bench, redis_url):
    """A turn, a release, an entry, a start; beside them the last look, and one behind the turn that is over."""
    worker_id, store, queue = await bench.live("w1"), bench.store(), bench.queue(poll_s=600)
    await store.accept(bench.job())
    [first] = await queue.reserve((MODEL,), worker_id, 1, 0)
    await queue.commit(first, bench.result(first), [])
    for _ in range(8):
        await store.accept(bench.job())
    async with _counting(bench.redis, redis_url) as count:
        finding = asyncio.create_task(queue.reserve((MODEL,), worker_id, 16, 0))
        assert await count(finding) == 8 * 4 + 2
    assert len(finding.result()) == 8


async def test_an_idle_worker_asks_once_a_second(bench, redis_url):
    """Three calls that wait 0.2 s each ask once, for what no message told."""
    worker_id, queue = await bench.live("w1"), bench.queue()
    async with queue, _counting(bench.redis, redis_url) as count:
        await queue.reserve((MODEL,), worker_id, 4, 0)

        async def idle() -> None:
            for _ in range(3):
                assert await queue.reserve((MODEL,), worker_id, 4, 200) == []

        began_s = time.monotonic()
        assert await count(idle()) <= 1 + (time.monotonic() - began_s)


class _Reads:
    """A store that counts the records that it has answered with."""

    def __init__(self, store: JobStore) -> None:
        self._store, self.num_answered = store, 0

    async def get(self, tenant_id: TenantId, job_id: JobId) -> JobRecord:
        """As the store does."""
        record = await self._store.get(tenant_id, job_id)
        self.num_answered += 1
        return record


async def test_whether_anybody_serves_a_model_is_asked_once_for_all(bench, redis_url):
    """Eight requests wait for jobs of a model: the list of workers is read for the first one of them."""
    await bench.live("w1")
    store, jobs = bench.store(), [bench.job() for _ in range(9)]
    for job in jobs:
        await store.accept(job)
    reads = _Reads(store)
    async with JobWaiter(bench.redis, reads, bench.registry(), poll_s=600) as waiter:

        async def begin_to_wait(*some: Any) -> None:
            waits.extend(asyncio.create_task(waiter.wait(job.tenant_id, job.job_id, 600)) for job in some)
            await eventually(lambda: reads.num_answered == len(waits))
            await asyncio.sleep(0.2)  # for what must not follow

        waits: list[asyncio.Task[Any]] = []
        await begin_to_wait(jobs[0])
        async with _counting(bench.redis, redis_url) as count:
            assert await count(begin_to_wait(*jobs[1:])) == 8
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
