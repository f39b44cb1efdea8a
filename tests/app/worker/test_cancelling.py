"""What becomes of a job in a worker's hands that is cancelled, taken away, or too large: with a real Redis."""

import threading

import pytest
from patience import PATIENCE_S

from app.domain.job import JobState
from app.jobs.leases import JobReclaimer
from app.jobs.types import JobLimits
from app.worker.loops.batcher import batch_key
from sparke_engine.diffusion.toy import ToyEngine
from sparke_engine.guidance.presets import preset_named

pytestmark = pytest.mark.anyio


class SteppingEngine(ToyEngine):
    """The toy, but at its second step it waits until the test has done something, and later steps take a moment."""

    def __init__(self):
        super().__init__(preset_named("toy"))
        self.began, self.go = threading.Event(), threading.Event()
        self.num_steps = 0
        self.prompts: list[list[str]] = []

    def generate(self, groups, plan, on_step):
        """As the toy, slower."""
        self.prompts.append([group.prompt for group in groups])

        def step(done, num_steps):
            self.num_steps = done
            on_step(done, num_steps)
            self.began.set()
            assert self.go.wait(PATIENCE_S)
            threading.Event().wait(0.02)

        return super().generate(groups, plan, step)


async def _while_running(bench, engine, reserved, act):
    """Runs the batch; at its first step the test acts, and the steps go on."""
    running = bench.start(reserved)
    while not engine.began.is_set():
        await bench.runner._parts.patience.pause(0.01)
    await act()
    engine.go.set()
    await running
    return [await bench.jobs.get(one.job.tenant_id, one.job.job_id) for one in reserved]


def _files(tmp_path):
    return sorted(path.name for path in (tmp_path / "images").rglob("*.png"))


async def test_a_cancelled_job_ends_at_a_step(open_bench, make_job, tmp_path):
    """Long before its last step, and each was counted when it was done; nothing of it is remembered or kept."""
    engine = SteppingEngine()
    bench = open_bench(engine=engine)
    reserved = await bench.reserve(make_job(1, steps=2000))
    job = reserved[0].job

    def num_counted():
        return bench.metrics.registry.get_sample_value("sparke_denoise_steps_total", {"model": "toy"})

    async def cancel():
        assert num_counted() == 1
        assert await bench.jobs.cancel(job.tenant_id, job.job_id) is JobState.RUNNING

    (record,) = await _while_running(bench, engine, reserved, cancel)
    assert (record.state, record.failure.code) == (JobState.CANCELLED, "cancelled")
    assert engine.num_steps < 1000
    assert num_counted() == engine.num_steps
    assert await bench.version() == 0
    assert _files(tmp_path) == []
    labels = {"model": "toy", "state": "cancelled"}
    assert bench.metrics.registry.get_sample_value("sparke_jobs_finished_total", labels) == 1


async def test_batch_mates_of_a_cancelled_job_are_made(open_bench, make_job, tmp_path):
    """The other job of the batch gets its image, is run once, and only it is remembered."""
    engine = SteppingEngine()
    bench = open_bench(engine=engine)
    reserved = await bench.reserve(
        make_job(1, steps=20), make_job(2, steps=20, prompt="a blue star", tenant="b")
    )
    job = reserved[0].job
    cancelled, made = await _while_running(
        bench, engine, reserved, lambda: bench.jobs.cancel(job.tenant_id, job.job_id)
    )
    assert (cancelled.state, made.state) == (JobState.CANCELLED, JobState.SUCCEEDED)
    assert len(engine.prompts) == 1
    assert (await bench.version(), await bench.version("b")) == (0, 1)
    assert _files(tmp_path) == [f"{made.fence}-0.png"]


async def test_a_job_cancelled_after_its_last_step_is_not_remembered(open_bench, make_job, tmp_path):
    """The commit itself looks: there is no moment at which a cancel comes too late and is acknowledged all the same."""
    bench = open_bench()
    (reserved,) = await bench.reserve(make_job(1))

    async def commit(*arguments, **members):
        """The moment before the commit."""
        assert await bench.jobs.cancel(reserved.job.tenant_id, reserved.job.job_id) is JobState.RUNNING
        return await bench.queue.commit(*arguments, **members)

    bench.jobs_seen.commit = commit
    await bench.runner.run([reserved])
    record = await bench.jobs.get(reserved.job.tenant_id, reserved.job.job_id)
    assert record.state is JobState.CANCELLED
    assert await bench.version() == 0
    assert _files(tmp_path) == []


async def test_a_job_cancelled_before_its_batch_never_reaches_the_device(open_bench, make_job):
    """It waited in the worker, and is ended when its turn comes; its batch-mate runs."""
    engine = SteppingEngine()
    engine.go.set()
    bench = open_bench(engine=engine)
    reserved = await bench.reserve(make_job(1, prompt="unwanted"), make_job(2))
    assert await bench.jobs.cancel("acme", reserved[0].job.job_id) is JobState.RUNNING
    await bench.runner.run(reserved)
    records = [await bench.jobs.get("acme", one.job.job_id) for one in reserved]
    assert [record.state for record in records] == [JobState.CANCELLED, JobState.SUCCEEDED]
    assert engine.prompts == [["a red circle"]]


async def test_a_job_that_was_given_to_another_worker_is_left_at_a_step(open_bench, make_job, tmp_path):
    """Its lease ran out while it was made: the old worker stops, and keeps its hands off it."""
    engine = SteppingEngine()
    bench = open_bench(engine=engine)
    reserved = await bench.reserve(make_job(1, steps=2000))
    (record,) = await _while_running(
        bench, engine, reserved, lambda: JobReclaimer(bench.redis, JobLimits(), lease_s=0).reclaim("toy")
    )
    assert (record.state, record.num_attempts) == (JobState.QUEUED, 1)
    assert engine.num_steps < 1000
    (again,) = await open_bench("two").reserve(reserved[0].job)
    assert again.fence > reserved[0].fence
    assert (again.num_attempts, again.runs_alone) == (1, True)
    assert _files(tmp_path) == []


async def test_out_of_memory_splits_the_batch_and_fails_the_culprit_alone(open_bench, make_job, small_engine):
    """Two jobs that are too large together fit apart; one that is too large by itself fails, once, with its reason."""
    engine = small_engine(room_images=2)
    bench = open_bench(engine=engine)
    first, large, last = await bench.run(
        make_job(1, num_images=2), make_job(2, num_images=3), make_job(3, num_images=1)
    )
    assert engine.sizes == [6, 2, 3, 1]
    assert (first.state, last.state) == (JobState.SUCCEEDED, JobState.SUCCEEDED)
    assert (large.state, large.failure.code) == (JobState.FAILED, "out_of_memory")
    assert await bench.version() == 3
    (record,) = await bench.run(make_job(4))
    assert record.state is JobState.SUCCEEDED


async def test_a_cap_that_was_learned_is_shown(open_bench, make_job, small_engine):
    """The metrics tell the least cap of the model and how often there was no room; other faults teach nothing."""
    engine = small_engine(room_images=2)
    bench = open_bench(engine=engine)
    await bench.run(make_job(1, size_px=60))
    await bench.run(make_job(2))

    def shown():
        names = ("sparke_batch_cap_images", "sparke_batches_out_of_memory_total")
        return [bench.metrics.registry.get_sample_value(name, {"model": "toy"}) for name in names]

    assert shown() == [16, None]
    await bench.run(make_job(3, num_images=3), make_job(4, num_images=2))
    assert shown() == [2, 2]
    assert bench.caps.cap_of(batch_key(make_job(5))) == 2
    await bench.run(make_job(6, num_images=9, size_px=128))
    assert (shown(), bench.caps.cap_of(batch_key(make_job(7, size_px=128)))) == ([2, 3], 4)
