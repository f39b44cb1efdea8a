"""A driver that is killed, or frozen, at any of its steps: the next one goes on, and nothing is lost or done twice."""

import asyncio
from functools import partial

import pytest
from patience import eventually
from redis.asyncio import Redis

from app.batches.held import LeaseLost
from app.batches.keys import lease_key, line_job_id, refused_key
from app.domain.batch import BatchState
from app.domain.job import JobState
from app.files.store import FileQuery

pytestmark = pytest.mark.anyio

WORDS = ["one", "bad", "two", "fail", "three", "four", "two"]


class _Killed(BaseException):
    """The process is gone: nothing catches this."""


class _FaultyRedis(Redis):
    """Meets its fate before a command, or after it, and every command after that."""

    at, when, num_commands, freeze = 0, "before", 0, None

    def meet(self, at, when, freeze=None):
        """Which command it is, and what happens there: the end, or a wait until somebody sets `freeze`."""
        self.at, self.when, self.freeze = at, when, freeze
        self.reached = asyncio.Event()
        return self

    async def _fate(self, when):
        if self.num_commands < self.at or when != self.when:
            return
        if self.freeze is None:
            raise _Killed
        if not self.reached.is_set():
            self.reached.set()
            await self.freeze.wait()

    async def execute_command(self, *args, **options):
        """A command, in its turn."""
        self.num_commands += 1
        await self._fate("before")
        answer = await super().execute_command(*args, **options)
        await self._fate("after")
        return answer

    def pipeline(self, *args, **options):
        """A pipeline counts as one command."""
        made = super().pipeline(*args, **options)
        execute = made.execute

        async def count():
            self.num_commands += 1
            await self._fate("before")
            answer = await execute()
            await self._fate("after")
            return answer

        made.execute = count
        return made


async def _drive(desk, batch, redis=None):
    """Drives a batch to its end, as one process does."""
    held = desk.held(batch, redis)
    assert await held.acquire(desk.limits.lease_s)
    async with held.kept(desk.limits.lease_s):
        assert await desk.drive(held, redis).run()
    await desk.batches().forget(batch.tenant_id, batch.batch_id)


async def _check_whole(desk, batch):
    record = await desk.read(batch)
    assert record.state is BatchState.COMPLETED
    assert (record.counts.total, record.counts.completed, record.counts.failed) == (7, 4, 3)
    assert [line["id"] for line in await desk.output(batch)] == ["one", "two", "three", "four"]
    assert [line["line"] for line in await desk.errors(batch)] == [2, 4, 7]
    assert sorted(desk.done) == ["fail", "four", "one", "three", "two"]
    page = await desk.files().list_files(batch.tenant_id, FileQuery(limit=10))
    assert len(page.files) == 3
    assert len(list((desk.folder / "files").rglob("file-*"))) == 3
    assert not list((desk.folder / "batches").rglob("batch_*"))
    left = [key async for key in desk.redis.scan_iter(match=f"*:{batch.batch_id}", count=1000)]
    assert {key.decode().split(":")[3] for key in left} <= {"batch", "batch-lease"}


async def _drive_killed_at(desk, batch, redis_url, *, at, when):
    """Drives a batch to its end, by a second driver where the first was killed at that step. Whether it was."""
    faulty = _FaultyRedis.from_url(redis_url, protocol=2).meet(at, when)
    try:
        await _drive(desk, batch, faulty)
    except _Killed:
        await desk.redis.delete(lease_key(batch.tenant_id, batch.batch_id))
        await _drive(desk, batch)
        return True
    finally:
        await faulty.aclose()
    return False


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_driver_killed_at_any_step_loses_and_doubles_nothing(desk, redis_url, when):
    """Its lease runs out, and another one goes on from what is written."""
    at, was_killed = 0, True
    async with desk.working():
        while was_killed:
            at += 1
            await desk.redis.flushdb()
            for path in desk.folder.rglob("f*-*"):
                path.unlink()
            desk.done.clear()
            batch = await desk.create(*WORDS)
            was_killed = await _drive_killed_at(desk, batch, redis_url, at=at, when=when)
            await _check_whole(desk, batch)
    assert at > 40


async def _make_room(desk, batch):
    """Forgets what fills the memories, once a line was refused for it."""
    key = refused_key(batch.tenant_id, batch.batch_id)
    await eventually(lambda: desk.redis.hlen(key))
    desk.num_entries = 0


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_driver_killed_at_any_step_forgets_no_line_that_it_stepped_over(desk, redis_url, when):
    """Lines that a full memory refused are done once there is room, each once."""
    at, was_killed = 0, True
    desk.quotas = {"max_memory_entries": 10}
    async with desk.working():
        while was_killed:
            at += 1
            await desk.redis.flushdb()
            desk.done.clear()
            desk.num_entries = 10
            batch = await desk.create("keep", "many", "aside", "keep too", "bad")
            room = asyncio.create_task(_make_room(desk, batch))
            was_killed = await _drive_killed_at(desk, batch, redis_url, at=at, when=when)
            await room
            record = await desk.read(batch)
            assert (record.state, record.counts.completed, record.counts.failed) == (
                BatchState.COMPLETED,
                4,
                1,
            )
            assert sorted(desk.done) == ["aside", "keep", "keep too", "many"]
    assert at > 40


async def _take_over(desk, batch, faulty, go_on):
    """Lets a driver freeze at its step, drives the batch to its end meanwhile, and wakes the first one."""
    first = asyncio.create_task(_drive(desk, batch, faulty))
    freezing = asyncio.create_task(faulty.reached.wait())
    await asyncio.wait((first, freezing), return_when=asyncio.FIRST_COMPLETED)
    was_frozen = faulty.reached.is_set()
    freezing.cancel()
    if was_frozen:
        await desk.redis.delete(lease_key(batch.tenant_id, batch.batch_id))
        await go_on()
        faulty.freeze.set()
    try:
        await first
    except LeaseLost:
        assert was_frozen
    finally:
        await faulty.aclose()
    return was_frozen


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_driver_that_wakes_up_late_changes_nothing(desk, redis_url, when):
    """Whatever it was about to write, another one has brought the batch to its end."""
    at, was_frozen = 1, True  # the first command is the lease
    async with desk.working():
        while was_frozen:
            at += 1
            await desk.redis.flushdb()
            for path in desk.folder.rglob("f*-*"):
                path.unlink()
            desk.done.clear()
            batch = await desk.create(*WORDS)
            faulty = _FaultyRedis.from_url(redis_url, protocol=2).meet(at, when, asyncio.Event())
            was_frozen = await _take_over(desk, batch, faulty, partial(_drive, desk, batch))
            await _check_whole(desk, batch)
    assert at > 40


async def _cancel_and_drive(desk, batch):
    await desk.batches().cancel(batch.tenant_id, batch.batch_id)
    await _drive(desk, batch)


async def _check_no_job_is_left(desk, batch):
    assert (await desk.read(batch)).state is BatchState.CANCELLED
    job_ids = [line_job_id(batch, line) for line in range(1, 8)]
    states = await desk.jobs().states(batch.tenant_id, job_ids)
    assert set(states) <= {None, JobState.CANCELLED}


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_driver_killed_before_a_cancel_leaves_no_job(desk, redis_url, when):
    """Also a job that it had submitted and not noted is cancelled."""
    for at in range(2, 30):
        await desk.redis.flushdb()
        batch = await desk.create(*WORDS)
        faulty = _FaultyRedis.from_url(redis_url, protocol=2).meet(at, when)
        with pytest.raises(_Killed):
            await _drive(desk, batch, faulty)
        await faulty.aclose()
        await desk.redis.delete(lease_key(batch.tenant_id, batch.batch_id))
        await _cancel_and_drive(desk, batch)
        await _check_no_job_is_left(desk, batch)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_driver_that_wakes_up_after_a_cancel_leaves_no_job(desk, redis_url, when):
    """No job of a cancelled batch is left to run, though its first driver was amid submitting it."""
    for at in range(2, 30):
        await desk.redis.flushdb()
        batch = await desk.create(*WORDS)
        faulty = _FaultyRedis.from_url(redis_url, protocol=2).meet(at, when, asyncio.Event())
        go_on = partial(_cancel_and_drive, desk, batch)
        assert await _take_over(desk, batch, faulty, go_on)
        await _check_no_job_is_left(desk, batch)
