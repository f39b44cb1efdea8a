"""Questions answered by a worker's parts, on a real Redis, with the toy model."""

import asyncio
import dataclasses
import math
import threading
from functools import partial

import numpy as np
import pytest
import torch
from patience import PATIENCE_S

from app.domain.ids import LatentSpace, MemoryName, ModelId, TenantId
from app.domain.job import JobKind, JobState
from app.domain.question import PreviewRequest, SearchRequest, StatsRequest
from app.domain.request import Diversity, MemorySelection, ReferenceSelection
from app.jobs.place import queue_of_questions
from app.memory.keys import MemoryKey
from app.worker.course.questions import QuestionRunner
from app.worker.memory.memory_reader import MemoryReader
from sparke_engine.core.kernels import GaussianKernel
from sparke_engine.core.scores import cond_rke, cond_vendi, rke, vendi
from sparke_engine.diffusion.toy import ToyEngine
from sparke_engine.guidance.presets import preset_named

pytestmark = pytest.mark.anyio

MODEL = ModelId("toy")
NAME = MemoryName("asked")
SPACE = LatentSpace("toy")


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
        memory, seed = MemorySelection(NAME), 1000 * number
        job = make_job(number + 100, prompt=prompt, tenant=tenant, memory=memory, seed=seed)
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
        self.busy = asyncio.ensure_future(device.run(lambda: self.go.wait(2 * PATIENCE_S)))


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
    now_ms = bench.clock_ms()

    async def wait(_job):
        bench.ahead_ms = 600_000
        held.go.set()

    record = await ask(
        make_question(1, created_at_ms=now_ms, deadline_at_ms=now_ms + 600_000), meanwhile=wait
    )
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


def _preview(make_job, number, *, prompt="a red circle", limit=256, tenant="acme", **diversity):
    members = {"strength": 0.5, "memory": MemorySelection(NAME), **diversity}
    request = PreviewRequest(MODEL, prompt, Diversity(**members), limit, 2)
    return dataclasses.replace(make_job(number, tenant=tenant), kind=JobKind.PREVIEW, request=request)


@pytest.mark.parametrize("most", [None, 3])
async def test_a_preview_has_the_neighbours_of_an_image(bench, make_job, ask, most):
    """The very entries that guide an image at that version, drawn anew for every version; and nothing is written."""
    await _remember(bench, make_job, *["a red circle", "a star", "a red circle", "the red circle"] * 3)
    preview = (await ask(_preview(make_job, 1, num_neighbours=most))).result
    memory = MemorySelection(NAME, version=preview.memory_version, write=False)
    job = make_job(2, prompt="a red circle", memory=memory, num_neighbours=most)
    [record] = await bench.run(job)
    assert preview.num_neighbours == record.images[0].num_neighbours == len(preview.neighbours)
    assert preview.num_qualified >= preview.num_neighbours
    assert await bench.version(name=NAME) == preview.memory_version == 12
    model = bench.runner._parts.models[MODEL]
    reader = MemoryReader(bench.memory_store, bench.memories, bench.metrics)
    embedding = model.engine.embed_prompts(["a red circle"])[0]
    read = await reader.read(job.tenant_id, job.generation.diversity, model, embedding)
    chosen = read.chosen
    found = {one.version: one.weight for one in preview.neighbours}
    assert found == dict(zip(chosen.versions.tolist(), chosen.weights.tolist(), strict=True))
    assert sum(found.values()) == pytest.approx(preview.num_qualified, rel=0.5)
    order = [(-one.similarity, one.version) for one in preview.neighbours]
    assert order == sorted(order)
    rule = model.engine.preset
    for one in preview.neighbours:
        kernel = math.exp(-rule.power * (1 - one.similarity) / rule.prompt_bandwidth**2)
        assert one.prompt_kernel == pytest.approx(kernel, rel=1e-3)


async def test_a_preview_expects_what_images_report(bench, make_job, ask):
    """About: within a third on the toy. Nothing at strength 0, in an empty memory, and of one that is not read."""
    await _remember(bench, make_job, *["a red circle"] * 8)
    expected = (await ask(_preview(make_job, 1))).result.expected_push
    pushes = []
    for seed in range(6):
        memory = MemorySelection(NAME, write=False)
        [record] = await bench.run(make_job(200 + seed, seed=500 + seed, memory=memory))
        pushes.append(record.images[0].push)
    assert sum(pushes) / len(pushes) == pytest.approx(expected, rel=0.33)
    assert (await ask(_preview(make_job, 2, strength=0.0))).result.expected_push == 0
    other = (await ask(_preview(make_job, 3, tenant="bolt"))).result
    assert (other.expected_push, other.num_qualified, other.memory_version) == (0, 0, 0)
    unread = (await ask(_preview(make_job, 4, memory=MemorySelection(NAME, read=False)))).result
    assert (unread.expected_push, unread.num_neighbours, unread.neighbours) == (0, 0, ())


async def test_a_preview_reads_its_references(bench, make_job, ask):
    """Their versions are told; one that holds nothing is refused as for an image."""
    await _remember(bench, make_job, "a red circle")
    novelty = ReferenceSelection(NAME, 0.5)
    found = (await ask(_preview(make_job, 1, novelty=novelty))).result
    assert (found.novelty_version, found.context_version) == (1, None)
    missing = ReferenceSelection(MemoryName("nothing"), 0.5)
    failure = (await ask(_preview(make_job, 2, context=missing))).failure
    assert (failure.code, failure.param) == ("reference_not_found", "diversity.context.reference")


def _stats(make_job, number, *, sample=2000, tenant="acme"):
    request = StatsRequest(MODEL, NAME, sample)
    return dataclasses.replace(make_job(number, tenant=tenant), kind=JobKind.STATS, request=request)


async def test_stats_are_the_scores_of_the_entries(bench, make_job, ask):
    """Those of the engine on what the log holds; of a sample, the same at every call."""
    await _remember(bench, make_job, *["a red circle", "a star", "a blue square"] * 3)
    stats = (await ask(_stats(make_job, 1))).result
    assert (stats.num_entries, stats.num_sampled, stats.memory_version) == (9, 9, 9)
    page = await bench.memory_store.read_entries_after(MemoryKey(TenantId("acme"), SPACE, NAME), 0)
    features = torch.from_numpy(np.stack([entry.feature for _, entry in page])).double()
    prompts = torch.from_numpy(np.stack([entry.prompt_embedding for _, entry in page])).double()
    preset = bench.runner._parts.models[MODEL].engine.preset
    kernels = GaussianKernel(preset.latent_bandwidth), GaussianKernel(preset.prompt_bandwidth)
    assert stats.rke == pytest.approx(rke(features, kernels[0]), rel=1e-4)
    assert stats.cond_rke == pytest.approx(cond_rke(features, prompts, kernels), rel=1e-4)
    assert stats.vendi == pytest.approx(vendi(features, kernels[0]), rel=1e-4)
    assert stats.cond_vendi == pytest.approx(cond_vendi(features, prompts, kernels), rel=1e-4)
    assert (stats.latent_bandwidth, stats.prompt_bandwidth) == (
        preset.latent_bandwidth,
        preset.prompt_bandwidth,
    )
    few = [(await ask(_stats(make_job, number, sample=4))).result for number in (2, 3)]
    assert few[0] == few[1]
    assert (few[0].num_entries, few[0].num_sampled) == (9, 4)
    nothing = (await ask(_stats(make_job, 4, tenant="bolt"))).result
    assert (nothing.num_entries, nothing.rke, nothing.cond_vendi) == (0, None, None)


async def test_stats_do_not_wait_for_the_device(bench, make_job, ask):
    """Spectra are found on the host, while a batch runs."""
    await _remember(bench, make_job, "a red circle")
    held = _Held(bench.device)
    record = await asyncio.wait_for(ask(_stats(make_job, 1)), PATIENCE_S)
    held.go.set()
    assert record.result.vendi == pytest.approx(1)


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
