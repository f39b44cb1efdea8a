"""Questions answered by a worker's parts, on a real Redis, with the toy model."""

import asyncio
import dataclasses
import threading
from functools import partial

import numpy as np
import pytest

from app.domain.ids import MemoryName, ModelId
from app.domain.job import JobKind, JobState
from app.domain.question import SearchRequest
from app.domain.request import MemorySelection
from app.jobs.place import queue_of_questions
from app.worker.questions import QuestionRunner
from sparke_engine.diffusion.toy import ToyEngine
from sparke_engine.guidance.presets import preset_named

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")
NAME = MemoryName("asked")


@pytest.fixture
def make_question(make_job):
    """A function that makes the job of a search; its first argument tells jobs apart."""

    def make(number, *, prompt="a red circle", limit=10, min_similarity=None, version=None, **members):
        request = SearchRequest(MODEL, NAME, prompt, limit, min_similarity, version)
        return dataclasses.replace(make_job(number, **members), kind=JobKind.SEARCH, request=request)

    return make


async def _ask(bench, job, *, meanwhile=None):
    """Puts a question's job through the queue and a worker; its record afterwards."""
    await bench.jobs.accept(job)
    [reserved] = await bench.queue.reserve([queue_of_questions(MODEL)], bench.worker_id, 1, 100)
    running = asyncio.create_task(QuestionRunner(bench.runner._parts).run(reserved))
    if meanwhile is not None:
        await meanwhile(job)
    await running
    return await bench.jobs.get(job.tenant_id, job.job_id)


@pytest.fixture
def ask(bench):
    """A function that asks that worker."""
    return partial(_ask, bench)


async def _remember(bench, make_job, *prompts, tenant="acme"):
    for number, prompt in enumerate(prompts):
        job = make_job(number + 100, prompt=prompt, tenant=tenant, memory=MemorySelection(NAME))
        [record] = await bench.run(job)
        assert record.state is JobState.SUCCEEDED, record.failure


async def _cosines(bench, prompt, others):
    engine = bench.runner._parts.models[MODEL].engine
    rows = engine.embed_prompts([prompt, *others]).double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[1:] @ rows[0]


async def test_the_nearest_prompts_are_found(bench, make_job, make_question, ask):
    """In the order of their cosines, which are those of the model's embeddings; equal ones by version."""
    prompts = ["a star", "a red circle", "a blue square", "a red circle"]
    await _remember(bench, make_job, *prompts)
    record = await ask(make_question(1, prompt="a red circle"))
    assert record.state is JobState.SUCCEEDED, record.failure
    assert (record.result.memory_name, record.result.memory_version) == (NAME, 4)
    cosines = await _cosines(bench, "a red circle", prompts)
    expected = sorted(range(4), key=lambda place: (-round(cosines[place], 3), place))
    assert [found.version for found in record.result.found] == [place + 1 for place in expected]
    for found in record.result.found:
        assert found.similarity == pytest.approx(cosines[found.version - 1], abs=2e-3)  # halves are kept
    assert [found.version for found in record.result.found[:2]] == [2, 4]


async def test_bounds_and_versions_narrow_a_search(bench, make_job, make_question, ask):
    """At most so many, none below so near, none that came later; and nothing of another tenant's memory."""
    await _remember(bench, make_job, "a red circle", "a star", "a red circle")
    assert len((await ask(make_question(1, limit=2))).result.found) == 2
    near = (await ask(make_question(2, min_similarity=0.999))).result
    assert [found.version for found in near.found] == [1, 3]
    then = (await ask(make_question(3, version=1))).result
    assert ([found.version for found in then.found], then.memory_version) == ([1], 1)
    assert (await ask(make_question(4, tenant="bolt"))).result.found == ()
    refused = (await ask(make_question(5, version=9))).failure
    assert (refused.code, refused.param) == ("invalid_request", "version")


class _Held:
    """A device that is busy until it is told to go on."""

    def __init__(self, device):
        self.go = threading.Event()
        self.busy = asyncio.ensure_future(device.run(lambda: self.go.wait(20)))


async def test_a_question_that_was_cancelled_while_the_device_was_busy_is_not_answered(
    bench, make_question, ask
):
    """Its end is a cancelled job's."""
    held = _Held(bench.device)

    async def cancel(job):
        await asyncio.sleep(0.05)
        await bench.jobs.cancel(job.tenant_id, job.job_id)
        held.go.set()

    record = await ask(make_question(1), meanwhile=cancel)
    assert (record.state, record.result) == (JobState.CANCELLED, None)


async def test_a_question_past_its_deadline_expires(bench, make_question, ask):
    """Also where that came while it waited for the device."""
    held = _Held(bench.device)
    now_ms = bench.runner._parts.clock_ms()

    async def wait(_job):
        await asyncio.sleep(0.35)
        held.go.set()

    record = await ask(make_question(1, created_at_ms=now_ms, deadline_at_ms=now_ms + 300), meanwhile=wait)
    assert record.state is JobState.EXPIRED


async def test_a_question_runs_beside_a_batch_up_to_its_prompt(bench, make_question, ask):
    """The event loop and the queue are free; only the device has to come to an end first."""
    held = _Held(bench.device)
    begun = []

    async def look(job):
        while not (await bench.jobs.get(job.tenant_id, job.job_id)).num_attempts:
            await bench.runner._parts.patience.pause(0.005)
        begun.append(job.job_id)
        held.go.set()

    record = await ask(make_question(1), meanwhile=look)
    assert (record.state, begun) == (JobState.SUCCEEDED, [record.job.job_id])


class MuteEngine(ToyEngine):
    """The toy, whose prompts cannot be embedded."""

    def embed_prompts(self, prompts):
        """Breaks."""
        raise RuntimeError(f"kaput: {prompts}")


async def test_what_goes_wrong_ends_the_question(open_bench, make_question):
    """With a code of its own, and nothing of the worker's inside."""
    broken = open_bench(engine=MuteEngine(preset_named("toy")))
    record = await _ask(broken, make_question(1))
    assert record.failure.code == "question_failed"
    assert "kaput" not in record.failure.message
