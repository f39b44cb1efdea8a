"""What a worker counts, through the real runner, queue and copies of memories."""

import asyncio
import threading

import pytest
import torch
from patience import PATIENCE_S, eventually
from prometheus_client import generate_latest

from app.domain.job import JobState
from app.domain.result import Failure
from app.errors import (
    CorruptRecord,
    InvalidRequest,
    PictureGone,
    ReferenceNotFound,
    StoreUnavailable,
    Unavailable,
    VersionGone,
)
from app.jobs.leases import JobReclaimer
from app.jobs.store import JobStore
from app.jobs.transitions import EXPIRED, POISON
from app.jobs.types import JobLimits
from app.jobs.waiter import NO_WORKER
from app.jobs.workers import now_ms
from app.settings import load_settings
from app.telemetry.metrics import FAILURE_REASONS, Metrics
from app.worker.exposition import begin_metrics, set_ready
from app.worker.failures import ENCODING_FAILED, GENERATION_FAILED, OUT_OF_MEMORY, QUESTION_FAILED
from app.worker.port import WorkerHealth, worker_port
from sparke_engine.errors import BrokenOutput, LoraNotLoadable

pytestmark = pytest.mark.anyio


def _value(bench, name, **labels):
    return bench.metrics.registry.get_sample_value(f"sparke_{name}", labels)


async def test_a_batch_tells_where_its_time_went(bench, make_job):
    """Guidance and decoding once a batch, a step from one end to the next; a prompt that comes again is known."""
    await bench.run(make_job(1, steps=4), make_job(2, steps=4, prompt="a moon"))
    await bench.run(make_job(3, steps=4))
    assert _value(bench, "guidance_seconds_count", model="toy") == 2
    assert _value(bench, "decode_seconds_count", model="toy") == 2
    assert _value(bench, "denoise_step_seconds_count", model="toy") == 6
    assert _value(bench, "denoise_steps_total", model="toy") == 8
    parts_s = sum(
        _value(bench, f"{name}_sum", model="toy") for name in ("guidance_seconds", "decode_seconds")
    )
    assert 0 < parts_s < _value(bench, "batch_seconds_sum", model="toy")
    assert _value(bench, "prompt_embedding_lookups_total", model="toy", outcome="miss") == 2
    assert _value(bench, "prompt_embedding_lookups_total", model="toy", outcome="hit") == 1


async def test_a_commit_without_its_fence_is_counted(bench, make_job):
    """Its images were made, and another has the job."""
    (reserved,) = await bench.reserve(make_job(1))
    commit = bench.jobs_seen.commit

    async def too_late(*given, **more):
        await JobReclaimer(bench.redis, JobLimits(), lease_s=0).reclaim("toy")
        return await commit(*given, **more)

    bench.jobs_seen.commit = too_late
    await bench.runner.run([reserved])
    assert _value(bench, "commit_failures_total", model="toy", reason="fence_lost") == 1
    assert _value(bench, "jobs_fence_lost_total", model="toy") == 1
    assert _value(bench, "images_total", model="toy") is None


async def test_a_commit_of_a_cancelled_job_is_counted(bench, make_job):
    """It ends as cancelled, and is no failure."""
    (reserved,) = await bench.reserve(make_job(1))
    commit = bench.jobs_seen.commit

    async def after_a_cancel(*given, **more):
        await bench.jobs.cancel(reserved.job.tenant_id, reserved.job.job_id)
        return await commit(*given, **more)

    bench.jobs_seen.commit = after_a_cancel
    await bench.runner.run([reserved])
    assert _value(bench, "commit_failures_total", model="toy", reason="cancelled") == 1
    assert _value(bench, "jobs_finished_total", model="toy", state="cancelled") == 1
    assert _value(bench, "job_failures_total", model="toy", reason="cancelled") is None


@pytest.mark.parametrize(
    ("error", "reason", "state"),
    [
        (StoreUnavailable("away"), "store_unavailable", JobState.SUCCEEDED),
        (CorruptRecord("a circle of names"), "corrupt_record", JobState.FAILED),
    ],
)
async def test_a_commit_that_wrote_nothing_is_counted(bench, make_job, error, reason, state):
    """One that may be tried again is, and counts each time; one that cannot fails the job."""
    (reserved,) = await bench.reserve(make_job(1))
    commit, faults = bench.jobs_seen.commit, [error, error] if state is JobState.SUCCEEDED else [error]

    async def shaky(*given, **more):
        if faults:
            raise faults.pop()
        return await commit(*given, **more)

    bench.jobs_seen.commit = shaky
    await bench.runner.run([reserved])
    record = await bench.jobs.get(reserved.job.tenant_id, reserved.job.job_id)
    assert record.state is state
    assert _value(bench, "commit_failures_total", model="toy", reason=reason) == (
        2 if state is JobState.SUCCEEDED else 1
    )
    assert _value(bench, "jobs_finished_total", model="toy", state=state.value) == 1


async def test_ends_that_no_runner_sees_are_counted(bench, make_job):
    """A job that is too late when it is taken, and one that workers died of, each once and by its reason."""
    await bench.jobs.accept(make_job(1, created_at_ms=now_ms() - 9_000, deadline_at_ms=now_ms() - 1_000))
    assert await bench.queue.reserve(["toy"], bench.worker_id, 1, 50) == []
    assert _value(bench, "jobs_finished_total", model="toy", state="expired") == 1
    assert _value(bench, "job_failures_total", model="toy", reason="expired") == 1
    await bench.jobs.accept(make_job(2))
    reclaimer = JobReclaimer(bench.redis, JobLimits(), lease_s=0, metrics=bench.metrics)
    for _ in range(JobLimits().max_attempts):
        (reserved,) = await bench.queue.reserve(["toy"], bench.worker_id, 1, 500)
        await bench.queue.begin(reserved)
        bench.queue._held.clear()
        await reclaimer.reclaim("toy")
    await bench.queue.reserve(["toy"], bench.worker_id, 1, 200)
    assert (await bench.jobs.get(reserved.job.tenant_id, reserved.job.job_id)).failure.code == "poison"
    assert _value(bench, "job_failures_total", model="toy", reason="poison") == 1
    assert _value(bench, "jobs_finished_total", model="toy", state="failed") == 1


async def test_a_cancelled_job_of_a_silent_worker_is_counted_by_who_reclaims_it(bench, make_job):
    """It ends then, as cancelled, and is no failure."""
    (reserved,) = await bench.reserve(make_job(1))
    await bench.jobs.cancel(reserved.job.tenant_id, reserved.job.job_id)
    await JobReclaimer(bench.redis, JobLimits(), lease_s=0, metrics=bench.metrics).reclaim("toy")
    assert _value(bench, "jobs_finished_total", model="toy", state="cancelled") == 1
    assert _value(bench, "job_failures_total", model="toy", reason="poison") is None


def test_every_reason_is_declared():
    """The code of whatever a job can fail by; those of requests that no worker sees are not among them."""
    of_worker = {ReferenceNotFound, VersionGone, PictureGone, InvalidRequest, CorruptRecord, LoraNotLoadable}
    of_worker |= {BrokenOutput, *BrokenOutput.__subclasses__(), Unavailable, StoreUnavailable}
    own = {QUESTION_FAILED, ENCODING_FAILED, OUT_OF_MEMORY, GENERATION_FAILED}
    ends = {failure.code for failure in (EXPIRED, POISON, NO_WORKER)}
    expected = {error.code for error in of_worker} | own | ends | {"other"}
    assert set(FAILURE_REASONS) == expected


async def test_the_api_counts_what_waits_for_no_worker(bench, make_job, redis):
    """A job that it gives up because nobody serves the model."""
    store, job = JobStore(redis, JobLimits(), metrics=bench.metrics), make_job(1)
    await store.accept(job)
    assert await store.fail_if_queued(job.tenant_id, job.job_id, Failure("no_worker", "nobody"))
    assert _value(bench, "job_failures_total", model="toy", reason="no_worker") == 1


async def test_a_worker_says_what_it_is(tmp_path):
    """Its release, torch's and diffusers', its device; that no model is ready yet; and no memory of a device it has not."""
    metrics = Metrics.of_process("worker")
    begin_metrics(metrics, ["toy"], "cpu")
    value = metrics.registry.get_sample_value
    assert value("sparke_worker_ready", {"model": "toy"}) == 0
    set_ready(metrics, ["toy"], 1)
    assert value("sparke_worker_ready", {"model": "toy"}) == 1
    text = generate_latest(metrics.registry).decode()
    assert f'torch="{torch.__version__}"' in text
    assert 'component="worker",device="cpu"' in text
    assert "sparke_device_memory_used_bytes{" not in text
    assert "# TYPE sparke_device_memory_used_bytes gauge" in text
    assert "process_resident_memory_bytes" in text
    settings = load_settings(data_dir=tmp_path, worker_metrics_port=0)
    health = WorkerHealth()
    with worker_port(settings, metrics.registry, health) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.split(":")[2].split("/")[0]))
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert b'sparke_worker_ready{model="toy"} 1.0' in await reader.read()
        writer.close()
    with worker_port(_without_port(settings), metrics.registry, health) as url:
        assert url is None


async def test_who_says_nothing_holds_no_thread_of_the_port(tmp_path, capfd):
    """A connection without a request is closed in time, without a word, and the next one is answered."""
    settings = load_settings(data_dir=tmp_path, worker_metrics_port=0)
    with worker_port(settings, Metrics().registry, WorkerHealth(), request_s=0.2) as url:
        port, before = int(url.split(":")[2].split("/")[0]), threading.active_count()
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        for reader, writer in silent:
            assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
            writer.close()
        await eventually(lambda: threading.active_count() <= before)

        async def is_answered():  # to whoever is quick enough
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return b'{"status": "loading"}' in answer

        await eventually(is_answered)
    assert "Traceback" not in capfd.readouterr().err


def _without_port(settings):
    return settings.model_copy(update={"worker_metrics_port": None})


@pytest.mark.gpu
def test_a_device_tells_its_memory():
    """What is allocated shows in what is used, when it is asked for."""
    metrics = Metrics.of_process("worker")
    begin_metrics(metrics, ["toy"], "cuda")
    value, label = metrics.registry.get_sample_value, {"device": f"cuda:{torch.cuda.current_device()}"}
    before = value("sparke_device_memory_used_bytes", label)
    held = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    assert value("sparke_device_memory_used_bytes", label) >= before + held.numel() // 2
    assert value("sparke_device_memory_total_bytes", label) > value("sparke_device_memory_used_bytes", label)
