"""The loop of questions: how many at once, and how it ends."""

import asyncio
from contextlib import suppress
from types import SimpleNamespace

import pytest
from patience import PATIENCE_S
from prometheus_client import CollectorRegistry

from app.domain.ids import ModelId, WorkerId
from app.errors import StoreUnavailable
from app.jobs.workers import now_ms
from app.telemetry.metrics import Metrics
from app.worker.loops.question_loop import MAX_AT_ONCE, QuestionLoop, QuestionParts
from app.worker.loops.reserving import Reserving
from app.worker.loops.together import run_together
from app.worker.patience import Patience

pytestmark = pytest.mark.anyio


class Asking:
    """A source of numbered questions, and who answers them: each waits for `go`, and one of `broken` raises."""

    def __init__(self, num_questions, *, broken=()):
        self.waiting = [
            SimpleNamespace(number=number, job=SimpleNamespace(job_id=f"job {number}"))
            for number in range(num_questions)
        ]
        self.broken = broken
        self.go, self.stop = asyncio.Event(), asyncio.Event()
        self.full, self.done = asyncio.Event(), asyncio.Event()
        self.num_questions = num_questions
        self.running = self.most = 0
        self.answered, self.given_back = [], []
        self.errors = []

    async def reserve(self, _queues, _worker_id, most, block_ms):
        """The next ones."""
        if self.errors:
            raise self.errors.pop()
        taken, self.waiting = self.waiting[:most], self.waiting[most:]
        if not taken:
            await asyncio.sleep(min(block_ms, 5) / 1000)
        return taken

    async def give_back(self, reserved, *, is_forgiven):
        """Note it."""
        self.given_back.append((reserved.number, is_forgiven))
        return True

    async def answer(self, reserved):
        """As told."""
        self.running += 1
        self.most = max(self.most, self.running)
        if self.running == min(MAX_AT_ONCE, self.num_questions):
            self.full.set()
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        if reserved.number in self.broken:
            raise RuntimeError("a fault")
        self.answered.append(reserved.number)
        if len(self.answered) == self.num_questions:
            self.done.set()

    def loop(self):
        """A loop over it."""
        metrics = Metrics(CollectorRegistry())
        patience = Patience(self.stop, now_ms, metrics)
        reserving = Reserving(self, (ModelId("toy"),), WorkerId("one"), patience, metrics)
        return QuestionLoop(QuestionParts(reserving, self.answer, self.stop))


async def test_a_few_run_at_once_and_all_are_answered():
    """No more are taken than run; who else is there may take the rest."""
    asking = Asking(10)
    running = asyncio.create_task(asking.loop().run())
    await asyncio.wait_for(asking.full.wait(), PATIENCE_S)
    await asyncio.sleep(0.02)
    assert (asking.most, len(asking.waiting)) == (MAX_AT_ONCE, 10 - MAX_AT_ONCE)
    asking.go.set()
    await asyncio.wait_for(asking.done.wait(), PATIENCE_S)
    asking.stop.set()
    await asyncio.wait_for(running, PATIENCE_S)
    assert (sorted(asking.answered), asking.most, asking.given_back) == (list(range(10)), MAX_AT_ONCE, [])


async def test_a_stop_lets_what_runs_end():
    """Nothing more is taken."""
    asking = Asking(6)
    running = asyncio.create_task(asking.loop().run())
    await asyncio.wait_for(asking.full.wait(), PATIENCE_S)
    asking.stop.set()
    asking.go.set()
    await asyncio.wait_for(running, PATIENCE_S)
    assert (asking.answered, len(asking.waiting)) == ([0, 1, 2, 3], 2)


async def test_cut_short_it_gives_back_what_runs():
    """And that is no attempt."""
    asking = Asking(2)
    running = asyncio.create_task(asking.loop().run())
    await asyncio.wait_for(asking.full.wait(), PATIENCE_S)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert (asking.given_back, asking.running) == ([(0, True), (1, True)], 0)


async def test_a_fault_ends_the_loop_and_counts():
    """What ran is given back as begun, the one that was broken too."""
    asking = Asking(2, broken={0})
    asking.go.set()
    with pytest.raises(RuntimeError, match="a fault"):
        await asyncio.wait_for(asking.loop().run(), PATIENCE_S)
    assert (0, False) in asking.given_back


async def test_an_outage_is_waited_for():
    """Questions that come after it are answered."""
    asking = Asking(1)
    asking.errors = [StoreUnavailable("away")]
    asking.go.set()
    running = asyncio.create_task(asking.loop().run())
    await asyncio.wait_for(asking.done.wait(), PATIENCE_S)
    asking.stop.set()
    await running


async def test_loops_end_together():
    """The fault of one ends the other, and is what is raised; without one both end by themselves."""
    ended = []

    async def wait_for_ever():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("other")

    async def break_down():
        raise RuntimeError("a fault")

    async def end():
        ended.append("one")

    with pytest.raises(RuntimeError, match="a fault"):
        await run_together(wait_for_ever(), break_down())
    await run_together(end(), end())
    assert ended == ["other", "one", "one"]
