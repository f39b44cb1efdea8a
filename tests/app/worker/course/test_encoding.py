"""Pictures become entries, once, whatever ends the job that they came with."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from app.domain.encoding import EncodeRequest
from app.domain.ids import LatentSpace, MemoryName, ModelId, TenantId, image_id
from app.domain.job import JobKind, JobState
from app.errors import MemoryFrozen, StoreUnavailable
from app.http.course.references import result_of_pictures
from app.images.store import sent_picture_key
from app.jobs.workers import now_ms
from app.memory.forgetting import MemoryForgetter
from app.memory.keys import MemoryKey
from app.worker.course.encoding import PictureRunner, RunnerByKind
from sparke_engine.diffusion.toy import ToyEngine
from sparke_engine.errors import NonFiniteLatents
from sparke_engine.guidance.presets import preset_named

pytestmark = pytest.mark.anyio

KEY = MemoryKey(TenantId("acme"), LatentSpace("toy"), MemoryName("mine"))


class Broken(ToyEngine):
    """The toy, whose autoencoder fails."""

    def encode_pictures(self, pictures):
        """Raise."""
        raise RuntimeError(f"no room for {len(pictures)}")


class Overflowing(ToyEngine):
    """The toy, whose autoencoder overflows."""

    def encode_pictures(self, pictures):
        """Raise."""
        raise NonFiniteLatents(f"overflowed at {len(pictures)}")


def _png(seed):
    buffer = io.BytesIO()
    levels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(levels).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def make_pictures(make_job):
    """A function that makes a job of pictures, and puts them where the API does."""

    async def make(bench, number, *pngs, prompt="a star"):
        digests = tuple(hashlib.sha256(png).hexdigest() for png in pngs)
        request = EncodeRequest(ModelId("toy"), KEY.name, prompt, digests)
        job = replace(make_job(number), kind=JobKind.ENCODE, request=request)
        for index, png in enumerate(pngs):
            await bench.images.put(sent_picture_key(job.tenant_id, job.job_id, index), png)
        return job

    return make


async def _run(bench, reserved):
    parts = bench.parts
    await RunnerByKind(bench.runner, PictureRunner(parts)).run(reserved)
    job = reserved[0].job
    return await bench.jobs.get(job.tenant_id, job.job_id)


async def test_pictures_become_entries_and_images(bench, make_pictures):
    """In their order, each with the engine's feature and the prompt's embedding; what was sent is gone, its bytes are the images."""
    pngs = [_png(seed) for seed in range(3)]
    job = await make_pictures(bench, 1, *pngs)
    record = await _run(bench, await bench.reserve(job))
    assert record.state is JobState.SUCCEEDED
    assert [image.image_id for image in record.images] == [image_id(job.job_id, index) for index in range(3)]
    assert [await bench.images.get(image.storage_key) for image in record.images] == pngs
    assert not await bench.images.has(sent_picture_key(job.tenant_id, job.job_id, 0))
    entries = await bench.memory_store.read_entries_after(KEY, 0)
    assert [entry.image_id for _, entry in entries] == [image.image_id for image in record.images]
    toy = ToyEngine(preset_named("toy"))
    features = toy.encode_pictures([Image.open(io.BytesIO(png)) for png in pngs]).numpy()
    found = np.stack([entry.feature for _, entry in entries])
    assert np.array_equal(found, features.astype(np.float16))
    assert np.array_equal(
        entries[0][1].prompt_embedding, toy.embed_prompts(["a star"])[0].numpy().astype(np.float16)
    )


@pytest.mark.parametrize(
    ("engine", "pngs", "code"),
    [
        (Broken(preset_named("toy")), [_png(1)], "encoding_failed"),
        (Overflowing(preset_named("toy")), [_png(1)], "non_finite_latents"),
        (None, [b"overwritten"], "corrupt_record"),
    ],
)
async def test_what_cannot_be_encoded_ends_with_a_reason(open_bench, make_pictures, engine, pngs, code):
    """Nothing is remembered, and the worker goes on."""
    bench = open_bench(engine=engine)
    record = await _run(bench, await bench.reserve(await make_pictures(bench, 1, *pngs)))
    assert (record.state, record.failure.code) == (JobState.FAILED, code)
    assert "seed" not in record.failure.message
    assert await bench.version(name="mine") == 0


async def test_pictures_that_are_gone_are_said_to_be(bench, make_pictures):
    """Rather than a stored record that cannot be read."""
    job = await make_pictures(bench, 1, _png(1))
    await bench.images.delete(sent_picture_key(job.tenant_id, job.job_id, 0))
    record = await _run(bench, await bench.reserve(job))
    assert record.failure.code == "picture_gone"


async def test_a_cancelled_or_late_job_remembers_nothing(bench, make_pictures):
    """Whoever cancels it while it waits for the device, or too late a start; no image stays."""
    cancelled = await make_pictures(bench, 1, _png(1))
    late = replace(await make_pictures(bench, 2, _png(2)), deadline_at_ms=now_ms() + 600_000)
    reserved = await bench.reserve(cancelled)
    await bench.jobs.cancel(cancelled.tenant_id, cancelled.job_id)
    assert (await _run(bench, reserved)).state is JobState.CANCELLED
    reserved = await bench.reserve(late)
    bench.ahead_ms = 600_000
    assert (await _run(bench, reserved)).state is JobState.EXPIRED
    assert await bench.version(name="mine") == 0


async def test_a_job_that_ends_while_it_is_encoded_leaves_no_image(open_bench, make_pictures):
    """Cancelled, or past its deadline, once its images are stored: they go at once, not with a sweep."""
    bench = open_bench()

    async def run(job, meanwhile):
        async def standing(*arguments):
            await meanwhile(job)
            return await bench.queue.standing(*arguments)

        bench.jobs_seen.standing = standing
        record = await _run(bench, await bench.reserve(job))
        left = [found async for found in bench.images.list_of(job.tenant_id, job.job_id)]
        assert left == [[sent_picture_key(job.tenant_id, job.job_id, 0)]]
        return record.state

    async def cancel(job):
        await bench.jobs.cancel(job.tenant_id, job.job_id)

    async def be_late(job):
        bench.ahead_ms = job.deadline_at_ms

    assert await run(await make_pictures(bench, 1, _png(1)), cancel) is JobState.CANCELLED
    assert await run(await make_pictures(bench, 2, _png(2)), be_late) is JobState.EXPIRED


async def test_what_was_forgotten_meanwhile_is_not_remembered(open_bench, make_pictures):
    """All of the memory is forgotten between the reading of the pictures and the commit: they were sent before that.

    Whoever sent them hears of it.
    """
    bench = open_bench()
    await _run(bench, await bench.reserve(await make_pictures(bench, 1, _png(1))))
    forgetter = MemoryForgetter(bench.redis, clock_ms=now_ms)

    async def commit(*arguments, **named):
        await forgetter.forget_all(KEY)
        return await bench.queue.commit(*arguments, **named)

    bench.jobs_seen.commit = commit
    record = await _run(bench, await bench.reserve(await make_pictures(bench, 2, _png(2))))
    assert record.state is JobState.SUCCEEDED
    assert await bench.memory_store.count(KEY) == 0
    with pytest.raises(MemoryFrozen, match="not remembered"):
        result_of_pictures(record)


async def test_the_store_away_is_waited_for(open_bench, make_pictures):
    """The first two reads fail; the job is done all the same, and its entries are there once."""
    bench = open_bench()
    job = await make_pictures(bench, 1, _png(1), _png(2))
    failures = [StoreUnavailable("away"), StoreUnavailable("away")]

    class Flaky:
        def __getattr__(self, name):
            return getattr(bench.images, name)

        async def get(self, key):
            if failures:
                raise failures.pop()
            return await bench.images.get(key)

    bench.parts = replace(bench.parts, images=Flaky())
    record = await _run(bench, await bench.reserve(job))
    assert record.state is JobState.SUCCEEDED
    assert await bench.version(name="mine") == 2
