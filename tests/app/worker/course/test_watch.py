"""A running batch is asked for once a step, and left when nobody wants it any more."""

import asyncio
import threading

import pytest
from patience import eventually

from app.domain.ids import WorkerId
from app.errors import StoreUnavailable
from app.jobs.types import Progress, ReservedJob, Standing
from app.worker.course.watch import TELL_EVERY_S, BatchStopped, BatchWatch

pytestmark = pytest.mark.anyio


class Told:
    """Answers as told, job by job, once it may; counts how often it was asked at a time."""

    def __init__(self):
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.standings: dict[str, Standing] = {}
        self.is_away = False
        self.told: list[Progress | None] = []
        self.num_asked = self.num_at_once = self.most_at_once = 0

    async def standing(self, reserved, progress=None):
        """As told, after a moment."""
        self.told.append(progress)
        self.num_asked += 1
        self.num_at_once += 1
        self.most_at_once = max(self.most_at_once, self.num_at_once)
        await self.may_answer.wait()
        await asyncio.sleep(0)
        self.num_at_once -= 1
        if self.is_away:
            raise StoreUnavailable("away")
        return self.standings.get(reserved.job.job_id, Standing.OURS)


@pytest.fixture
def batch(make_job):
    """Two jobs that this worker has started."""
    return [ReservedJob(make_job(number), 1, WorkerId("one"), f"{number}-0") for number in (1, 2)]


async def _step(watch, step=1):
    """A step on another thread, as of a device, and its answer."""
    before = watch._question
    await asyncio.to_thread(watch.on_step, step, 9)
    await eventually(lambda: watch._question is not before and watch._question.done())


async def test_batch_mates_of_a_cancelled_job_go_on(batch):
    """The cancelled one is let go once; when the other is lost too, the next step leaves the engine."""
    told, gone = Told(), []

    async def let_go(reserved, standing):
        gone.append((reserved, standing))

    async with BatchWatch(told, batch, let_go) as watch:
        await _step(watch)
        assert gone == []
        told.standings[batch[0].job.job_id] = Standing.CANCELLED
        await _step(watch)
        await _step(watch)
        assert gone == [(batch[0], Standing.CANCELLED)]
        assert [watch.is_gone(one) for one in batch] == [True, False]
        told.standings[batch[1].job.job_id] = Standing.LOST
        await _step(watch)
        with pytest.raises(BatchStopped):
            await _step(watch)
    assert gone == [(batch[0], Standing.CANCELLED), (batch[1], Standing.LOST)]


async def test_steps_wait_for_no_answer_and_one_question_is_asked_at_a_time(batch):
    """A hundred steps while no answer comes ask once, and an outage changes nothing."""
    told = Told()
    told.is_away = True
    told.may_answer.clear()

    async def let_go(_reserved, _standing):
        raise AssertionError("nobody is gone")

    async with BatchWatch(told, batch, let_go) as watch:
        done = threading.Event()

        def hundred_steps():
            for _ in range(100):
                watch.on_step(1, 9)
            done.set()

        await asyncio.to_thread(hundred_steps)
        assert done.is_set()
        await eventually(lambda: told.num_asked)
        told.may_answer.set()
    assert told.num_asked == len(batch)
    assert told.most_at_once == len(batch)
    assert not any(watch.is_gone(one) for one in batch)


async def test_nothing_is_asked_after_the_end(batch):
    """A question under way at the end is waited for, and a late step asks none."""
    told = Told()

    async def let_go(_reserved, _standing):
        raise AssertionError("nobody is gone")

    async with BatchWatch(told, batch, let_go) as watch:
        watch.on_step(1, 9)
        await asyncio.sleep(0)
    num_asked = told.num_asked
    watch.on_step(1, 9)
    await asyncio.sleep(0.05)
    assert (told.num_at_once, told.num_asked) == (0, num_asked)


async def test_progress_is_told_now_and_then(batch):
    """The first step is told of every job; the next ones only after a while, though each is asked about."""
    told, at_s = Told(), 9.0

    async def let_go(_reserved, _standing):
        pytest.fail("nobody cancelled")

    async with BatchWatch(told, batch, let_go, monotonic_s=lambda: at_s) as watch:
        for step in range(1, 4):
            await _step(watch, step)
        at_s += TELL_EVERY_S
        await _step(watch, 8)
    first, last = Progress(1, 9), Progress(8, 9)
    assert told.told == [first, first, None, None, None, None, last, last]
