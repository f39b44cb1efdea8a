"""The worker's loop: what it reserves, when it runs, and how it ends."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest
from patience import eventually
from prometheus_client import CollectorRegistry

from app.domain.ids import ModelId, WorkerId
from app.domain.job import Lane
from app.errors import StoreUnavailable
from app.jobs.types import ReservedJob
from app.jobs.workers import now_ms
from app.telemetry.metrics import Metrics
from app.worker.loops.batcher import Batcher
from app.worker.loops.loop import LoopParts, WorkerLoop
from app.worker.patience import Patience

pytestmark = pytest.mark.anyio

MAX_IMAGES = 4


class ListSource:
    """Gives out what it was given, at most as many as asked for; errors in the list are raised."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked: list[int] = []
        self.given_back: list[ReservedJob] = []
        self.forgiven: list[bool] = []

    async def reserve(self, _models, _worker_id, max_images, block_ms):
        """The next answer."""
        self.asked.append(max_images)
        if not self.answers:
            await asyncio.sleep(min(block_ms, 10) / 1000)
            return []
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert len(answer) <= max_images
        return answer

    async def give_back(self, reserved, *, is_forgiven):
        """Note it."""
        self.given_back.append(reserved)
        self.forgiven.append(is_forgiven)
        return True


class NotingRunner:
    """Notes batches; waits for `go` in each, and raises what it was told to."""

    def __init__(self, error=None):
        self.batches: list[list[ReservedJob]] = []
        self.go = asyncio.Event()
        self.go.set()
        self.began = asyncio.Event()
        self.error = error

    async def run(self, batch):
        """As told."""
        self.batches.append(list(batch))
        self.began.set()
        await self.go.wait()
        if self.error is not None:
            raise self.error


def _loop(source, runner, stop, *, window_ms=0, cap_images=MAX_IMAGES, clock_ms=now_ms):
    metrics = Metrics(CollectorRegistry())
    return WorkerLoop(
        LoopParts(
            source=source,
            runner=runner,
            batcher=Batcher(max_images=MAX_IMAGES, window_ms=window_ms, cap_of=lambda _key: cap_images),
            models=(ModelId("toy"),),
            worker_id=WorkerId("one"),
            patience=Patience(stop, clock_ms, metrics),
            clock_ms=clock_ms,
            stop=stop,
            metrics=metrics,
        )
    )


@pytest.fixture
def reserved(make_job):
    """A function that makes a reserved job."""
    return lambda number, **members: ReservedJob(
        make_job(number, **members), 1, WorkerId("one"), f"{number}-0"
    )


async def test_no_more_is_held_than_fills_a_batch_that_was_learned_to_be_small(reserved):
    """What a worker cannot run now an idle one can: a cap of two images is two images reserved, and not a large batch's."""
    jobs = [reserved(number) for number in range(4)]
    source, runner, stop = ListSource(jobs[:1], jobs[1:2], jobs[2:]), NotingRunner(), asyncio.Event()
    task = asyncio.create_task(
        _loop(source, runner, stop, window_ms=200, cap_images=2, clock_ms=lambda: 5_000).run()
    )
    await eventually(lambda: len(runner.batches) == 2)
    stop.set()
    await task
    assert runner.batches == [jobs[:2], jobs[2:]]
    assert source.asked[:3] == [
        MAX_IMAGES,
        1,
        2,
    ]  # before the first job nobody knows of what there will be batches


async def test_a_line_of_a_batch_waits_in_a_lane_of_its_own(reserved):
    """Its wait is no one's: it would hide how long those wait who look on."""
    line = reserved(2, created_at_ms=1_000)
    jobs = [reserved(1, created_at_ms=4_000), replace(line, job=replace(line.job, lane=Lane.BATCH))]
    source, runner, stop = ListSource(jobs), NotingRunner(), asyncio.Event()
    loop = _loop(source, runner, stop, clock_ms=lambda: 5_000)
    task = asyncio.create_task(loop.run())
    await eventually(lambda: runner.batches)
    stop.set()
    await task
    value = loop._parts.metrics.registry.get_sample_value
    waited_s = {
        lane.value: value("sparke_job_wait_seconds_sum", {"model": "toy", "lane": lane.value})
        for lane in Lane
    }
    assert waited_s == {"interactive": 1, "batch": 4}


async def test_compatible_jobs_that_come_apart_run_together(reserved):
    """Within the window the loop reserves again, never more than there is room for, and runs one batch."""
    first, second = reserved(1), reserved(2)
    source, runner, stop = ListSource([first], [second]), NotingRunner(), asyncio.Event()
    at_ms = 5_000
    task = asyncio.create_task(_loop(source, runner, stop, window_ms=200, clock_ms=lambda: at_ms).run())
    await eventually(lambda: len(source.asked) > 3)
    assert runner.batches == []
    at_ms += 200
    await eventually(lambda: runner.batches)
    stop.set()
    await task
    assert runner.batches == [[first, second]]
    assert source.asked[:3] == [4, 3, 2]
    assert source.given_back == []


async def test_a_stop_finishes_the_running_batch_and_gives_back_the_rest(reserved):
    """What was begun ends here; what waited goes back to the queue, once each."""
    running, waiting = reserved(1), reserved(2, steps=9, created_at_ms=2_000)
    source, runner, stop = ListSource([running, waiting]), NotingRunner(), asyncio.Event()
    runner.go.clear()
    task = asyncio.create_task(_loop(source, runner, stop).run())
    await runner.began.wait()
    stop.set()
    await asyncio.sleep(0.05)
    assert not task.done()
    runner.go.set()
    await task
    assert runner.batches == [[running]]
    assert source.given_back == [waiting]


async def test_a_cancelled_loop_gives_back_its_batch_too(reserved):
    """When the patience with a batch ends, its jobs can run elsewhere."""
    running, waiting = reserved(1), reserved(2, steps=9, created_at_ms=2_000)
    source, runner = ListSource([running, waiting]), NotingRunner()
    runner.go.clear()
    task = asyncio.create_task(_loop(source, runner, asyncio.Event()).run())
    await runner.began.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert (source.given_back, source.forgiven) == ([running, waiting], [True, True])


async def test_an_outage_is_waited_for(reserved):
    """While Redis is away the loop pauses and asks again, and then works as before."""
    job = reserved(1)
    source = ListSource(StoreUnavailable("away"), StoreUnavailable("away"), [job])
    runner, stop = NotingRunner(), asyncio.Event()
    task = asyncio.create_task(_loop(source, runner, stop).run())
    await eventually(lambda: runner.batches)
    stop.set()
    await task
    assert runner.batches == [[job]]


async def test_a_fault_of_the_runner_ends_the_loop_and_strands_nothing(reserved):
    """An error that no job may cause ends the loop with it, and the jobs go back."""
    job = reserved(1)
    source, runner = ListSource([job]), NotingRunner(error=RuntimeError("a fault"))
    with pytest.raises(RuntimeError, match="a fault"):
        await _loop(source, runner, asyncio.Event()).run()
    assert (source.given_back, source.forgiven) == ([job], [False])


async def test_no_more_is_reserved_than_fills_a_batch(reserved):
    """While incompatible jobs wait for their turn nothing is asked for beyond the room left."""
    jobs = [reserved(number, steps=number) for number in range(1, 5)]
    source, runner, stop = ListSource(jobs), NotingRunner(), asyncio.Event()
    task = asyncio.create_task(_loop(source, runner, stop).run())
    await eventually(lambda: len(runner.batches) == 4)
    stop.set()
    await task
    assert source.asked[:4] == [4, 1, 2, 3]
