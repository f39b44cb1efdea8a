"""One batch end to end, with a real Redis, real files and the weightless engine."""

import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
from patience import eventually
from PIL import Image

from app.domain.ids import MemoryName, image_id
from app.domain.job import JobState
from app.domain.request import MemorySelection
from app.errors import StoreUnavailable
from app.jobs.leases import JobReclaimer
from app.jobs.types import JobLimits
from app.jobs.workers import now_ms
from app.worker.course.png import read_metadata
from sparke_engine.diffusion.loras import LoraScale
from sparke_engine.diffusion.toy import ToyEngine, prompt_digest, read_toy_image
from sparke_engine.errors import LoraNotLoadable
from sparke_engine.guidance.presets import preset_named

pytestmark = pytest.mark.anyio


class ScriptedEngine(ToyEngine):
    """The toy, but some prompts raise or lose images, and every batch is noted."""

    def __init__(self, *, raises: dict[str, Exception] | None = None, loses: Sequence[str] = ()):
        super().__init__(preset_named("toy"))
        self.raises, self.loses = raises or {}, loses
        self.batches: list[list[str]] = []

    def generate(self, groups, plan, on_step):
        """Note the batch, then do as told."""
        self.batches.append([group.prompt for group in groups])
        for group in groups:
            if group.prompt in self.raises:
                raise self.raises[group.prompt]
        samples = super().generate(groups, plan, on_step)
        return [
            found[1:] if group.prompt in self.loses else found
            for group, found in zip(groups, samples, strict=True)
        ]


def _shown(png):
    return read_toy_image(Image.open(io.BytesIO(png)))


def _pixels(png):
    return Image.open(io.BytesIO(png)).tobytes()


async def test_a_job_becomes_images_entries_and_a_result(bench, make_job):
    """Every image shows its prompt and seed, says how it was made, lies where the result says, and is remembered."""
    job = make_job(1, num_images=3, seed=100)
    (record,) = await bench.run(job)
    assert record.state is JobState.SUCCEEDED
    assert record.result.memory_version == 0
    pngs = await bench.pngs(record)
    for index, (image, png) in enumerate(zip(record.result.images, pngs, strict=True)):
        assert _shown(png) == (prompt_digest(job.request.prompt), 100 + index)
        assert (image.image_id, image.seed) == (image_id(job.job_id, index), 100 + index)
        assert image.size_bytes == len(png)
        metadata = read_metadata(png)
        assert (metadata.seed, metadata.memory_version, metadata.image_id) == (image.seed, 0, image.image_id)
    assert await bench.version() == 3
    sample = bench.metrics.registry.get_sample_value
    assert sample("sparke_images_total", {"model": "toy"}) == 3
    assert sample("sparke_jobs_finished_total", {"model": "toy", "state": "succeeded"}) == 1


async def test_the_second_request_is_pushed_away_from_the_first(bench, make_job):
    """The memory of one request guides the next one of the same prompt, and the result says so."""
    await bench.run(make_job(1, num_images=2))
    (record,) = await bench.run(make_job(2, seed=50))
    (image,) = record.result.images
    assert (record.result.memory_version, image.num_neighbours) == (2, 2)
    assert image.push > 0
    assert image.nearest_similarity is not None


async def test_two_workers_see_each_others_entries(open_bench, make_job):
    """What one worker made guides what the other makes, in both directions."""
    one, other = open_bench("one"), open_bench("other")
    await one.run(make_job(1))
    (second,) = await other.run(make_job(2, seed=20))
    (third,) = await one.run(make_job(3, seed=30))
    assert [image.num_neighbours for record in (second, third) for image in record.result.images] == [1, 2]


@pytest.mark.parametrize(
    ("selection", "num_neighbours", "num_written"),
    [
        (MemorySelection(), 2, 1),
        (MemorySelection(write=False), 2, 0),
        (MemorySelection(read=False), 0, 1),
        (MemorySelection(name=MemoryName("other")), 0, 0),
        (MemorySelection(version=1), 1, 1),
    ],
)
@pytest.mark.parametrize("strength", [0.0, 0.5])
async def test_a_request_says_what_it_reads_and_writes(
    bench, make_job, selection, num_neighbours, num_written, strength
):
    """Strength 0 writes too unless write is false; read=false, another name or an older version read less."""
    await bench.run(make_job(1, num_images=2))
    (record,) = await bench.run(make_job(2, strength=strength, memory=selection, seed=9))
    (image,) = record.result.images
    assert image.num_neighbours == num_neighbours
    assert await bench.version() == 2 + num_written
    if strength == 0:
        assert image.push == 0


async def test_the_request_caps_its_neighbours(bench, make_job):
    """`num_neighbours` bounds the set, and 0 leaves none."""
    await bench.run(make_job(1, num_images=6))
    records = [await bench.run(make_job(2 + cap, num_neighbours=cap, seed=9)) for cap in (0, 1, 4, 99)]
    assert [record.result.images[0].num_neighbours for (record,) in records] == [0, 1, 4, 9]


async def test_a_mixed_batch_never_mixes_its_answers(open_bench, make_job):
    """In one batch of many tenants each gets its own prompt, seeds and memory, bit-equal to running alone."""
    one, other = open_bench("one"), open_bench("other")
    tenants = ["a", "b", "c"]
    await one.run(
        *(make_job(n, tenant=t, prompt="a cat", num_images=2, seed=n) for n, t in enumerate(tenants))
    )
    jobs = [
        make_job(
            10 + number,
            tenant=tenant,
            prompt=prompt,
            num_images=1 + number % 3,
            seed=1000 * number,
            memory=MemorySelection(write=False),
        )
        for number, (tenant, prompt) in enumerate((t, p) for t in tenants for p in ("a cat", "a dog 🐕"))
    ]
    mixed = await one.run(*jobs)
    for number, (job, record) in enumerate(zip(jobs, mixed, strict=True)):
        pngs = await one.pngs(record)
        expected = [(prompt_digest(job.request.prompt), seed) for seed in job.request.seeds]
        assert [_shown(png) for png in pngs] == expected
        again = make_job(
            50 + number,
            tenant=job.tenant_id,
            prompt=job.request.prompt,
            num_images=job.request.num_images,
            seed=job.request.seed,
            memory=MemorySelection(write=False),
        )
        (alone,) = await other.run(again)
        assert [_pixels(png) for png in await other.pngs(alone)] == [_pixels(png) for png in pngs]


async def test_another_tenants_memory_changes_no_bit(open_bench, make_job):
    """Tenant A's image is the same whether tenant B has images of the same prompt or not."""
    bench = open_bench()
    await bench.run(make_job(1, tenant="a"))
    frozen = MemorySelection(write=False)
    (before,) = await bench.run(make_job(2, tenant="a", seed=5, memory=frozen))
    await bench.run(make_job(3, tenant="b", num_images=5))
    after, _ = await bench.run(
        make_job(4, tenant="a", seed=5, memory=frozen), make_job(5, tenant="b", seed=5)
    )
    assert [_pixels(p) for p in await bench.pngs(before)] == [_pixels(p) for p in await bench.pngs(after)]


async def test_a_replay_after_200_more_images_gives_the_same_pixels(bench, make_job):
    """Same seed and `memory.version` as the result named: the same pixels; without the version: others."""
    await bench.run(make_job(1, num_images=4))
    (original,) = await bench.run(make_job(2, num_images=3, seed=77))
    await bench.run(*(make_job(10 + number, num_images=10, seed=1000 * number) for number in range(20)))
    assert await bench.version() == 207
    version = original.result.memory_version
    replay = MemorySelection(version=version)
    (again,) = await bench.run(make_job(90, num_images=3, seed=77, memory=replay))
    (anew,) = await bench.run(make_job(91, num_images=3, seed=77))
    first, second, third = [[_pixels(p) for p in await bench.pngs(r)] for r in (original, again, anew)]
    assert first == second
    assert first != third
    assert again.result.memory_version == version == 4
    assert read_metadata((await bench.pngs(again))[0]).memory_version == 4


async def test_above_the_cap_every_version_is_drawn_anew_and_replays(open_bench, make_job):
    """Of one prompt, seed and strength: another image for every version, the same for one, on another worker too."""
    one, other = open_bench("one"), open_bench("other")
    await one.run(make_job(1, num_images=10, seed=500))
    await one.run(make_job(2, num_images=10, seed=600))
    asked = {"num_images": 2, "seed": 77, "num_neighbours": 4}
    made = [(await one.run(make_job(3 + number, **asked)))[0] for number in range(3)]
    assert [record.result.memory_version for record in made] == [20, 22, 24]
    pixels = [[_pixels(png) for png in await one.pngs(record)] for record in made]
    assert pixels[0] != pixels[1] != pixels[2] != pixels[0]
    frozen = MemorySelection(version=22, write=False)
    replays = [
        (await bench.run(make_job(10 + number, memory=frozen, **asked)))[0]
        for number, bench in enumerate((one, other))
    ]
    for bench, replay in zip((one, other), replays, strict=True):
        assert [_pixels(png) for png in await bench.pngs(replay)] == pixels[1]
        assert [image.num_neighbours for image in replay.result.images] == [4, 4]


async def test_above_the_cap_a_draw_is_of_the_tenants_own_memory(open_bench, make_job):
    """Another tenant's memory of other length in the same batch changes no bit of what this one draws."""
    one, other = open_bench("one"), open_bench("other")
    await one.run(make_job(1, tenant="a", num_images=10, seed=500))
    own = {"tenant": "a", "seed": 77, "num_neighbours": 3, "memory": MemorySelection(write=False)}
    beside = {"tenant": "b", "seed": 5, "num_neighbours": 3}
    before, _ = await one.run(make_job(2, **own), make_job(3, **beside))
    await one.run(make_job(4, tenant="b", num_images=10, seed=900))
    after, _ = await other.run(make_job(5, **own), make_job(6, **beside))
    (first,), (second,) = await one.pngs(before), await other.pngs(after)
    assert _pixels(first) == _pixels(second)
    assert before.result.images[0].num_neighbours == after.result.images[0].num_neighbours == 3


async def test_a_replay_of_the_future_is_refused(bench, make_job):
    """A version that the memory has not reached is the request's fault, and the message says what there is."""
    await bench.run(make_job(1))
    (record,) = await bench.run(make_job(2, memory=MemorySelection(version=7)))
    assert record.state is JobState.FAILED
    assert record.failure.code == "invalid_request"
    assert "7" in record.failure.message
    assert "1" in record.failure.message


async def test_a_bad_job_fails_alone(open_bench, make_job):
    """The batch is tried once, then every job once by itself; only the culprit fails, and learns nothing internal."""
    engine = ScriptedEngine(raises={"poison": RuntimeError("secret path /srv/model.bin")})
    bench = open_bench(engine=engine)
    jobs = [make_job(1), make_job(2, prompt="poison", tenant="b"), make_job(3, tenant="c", seed=8)]
    good, bad, also_good = await bench.run(*jobs)
    assert (good.state, bad.state, also_good.state) == (
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.SUCCEEDED,
    )
    assert bad.failure.code == "generation_failed"
    assert "secret" not in bad.failure.message
    assert bad.job.job_id in bad.failure.message
    assert [len(batch) for batch in engine.batches] == [3, 1, 1, 1]
    assert _shown((await bench.pngs(also_good))[0]) == (prompt_digest(jobs[2].request.prompt), 8)
    assert await bench.version("b") == 0


async def test_images_say_how_large_their_batch_was(open_bench, make_job):
    """All images of the batch that made them: of the shared one, or after a failure of the job's own."""
    engine = ScriptedEngine(raises={"poison": RuntimeError("no")})
    bench = open_bench(engine=engine)
    shared = await bench.run(make_job(1, num_images=2), make_job(2, num_images=3))
    alone, _ = await bench.run(make_job(3, num_images=2), make_job(4, prompt="poison"))
    told = [
        [read_metadata(png).num_batch_images for png in await bench.pngs(record)]
        for record in (*shared, alone)
    ]
    assert told == [[5, 5], [5, 5, 5], [2, 2]]


async def test_loras_reach_the_engine_and_one_that_is_broken_its_jobs(open_bench, make_job):
    """Names and scales are in the plan; a job whose LoRA does not fit fails with its name, and others go on."""

    class Noting(ToyEngine):
        """The toy, but LoRAs are noted, and one is broken."""

        def __init__(self):
            super().__init__(preset_named("toy"))
            self.seen = []

        def generate(self, groups, plan, on_step):
            """Note, refuse, or make as without LoRAs."""
            self.seen.append(plan.loras)
            if any(lora.name == "torn" for lora in plan.loras):
                raise LoraNotLoadable("in /srv/secret", name="torn")
            return super().generate(groups, replace(plan, loras=()), on_step)

    engine = Noting()
    bench = open_bench(engine=engine)
    (good,) = await bench.run(make_job(1, loras={"ink": 0.5, "oil": -1.0}))
    (bad,) = await bench.run(make_job(2, loras={"torn": 1.0}))
    (plain,) = await bench.run(make_job(3))
    assert engine.seen == [(LoraScale("ink", 0.5), LoraScale("oil", -1.0)), (LoraScale("torn", 1.0),), ()]
    assert [record.state for record in (good, bad, plain)] == [
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.SUCCEEDED,
    ]
    assert bad.failure.code == "lora_not_loadable"
    assert "'torn'" in bad.failure.message
    assert "secret" not in bad.failure.message


async def test_a_lone_bad_job_is_tried_once(open_bench, make_job):
    """What ran alone already is not run again."""
    engine = ScriptedEngine(raises={"poison": RuntimeError("no")})
    (record,) = await open_bench(engine=engine).run(make_job(1, prompt="poison"))
    assert record.state is JobState.FAILED
    assert len(engine.batches) == 1


async def test_lost_images_are_noticed(open_bench, make_job):
    """An engine that gives fewer images than asked for fails that job and hands nobody another's image."""
    bench = open_bench(engine=ScriptedEngine(loses=["short"]))
    jobs = [make_job(1, prompt="short", num_images=2), make_job(2, num_images=2)]
    short, whole = await bench.run(*jobs)
    assert short.failure.code == "output_mismatch"
    assert [_shown(png)[1] for png in await bench.pngs(whole)] == [7, 8]


async def test_what_the_model_cannot_do_is_the_requests_fault(bench, make_job):
    """A size that the engine refuses is invalid_request with the engine's own words; others are not touched."""
    bad, good = await bench.run(make_job(1, size_px=60), make_job(2, size_px=64))
    assert bad.failure.code == "invalid_request"
    assert "60" in bad.failure.message
    assert good.state is JobState.SUCCEEDED


async def test_a_job_past_its_deadline_never_reaches_the_device(open_bench, make_job):
    """It is expired, and counted so, before the engine is asked, and its batch-mates run."""
    engine = ScriptedEngine()
    bench = open_bench(engine=engine)
    reserved = await bench.reserve(make_job(1, prompt="late", deadline_at_ms=now_ms() + 600_000), make_job(2))
    bench.ahead_ms = 600_000
    await bench.runner.run(reserved)
    records = [await bench.jobs.get(one.job.tenant_id, one.job.job_id) for one in reserved]
    assert (records[0].state, records[0].failure.code) == (JobState.EXPIRED, "expired")
    labels = {"model": "toy", "state": "expired"}
    assert bench.metrics.registry.get_sample_value("sparke_jobs_finished_total", labels) == 1
    assert records[1].state is JobState.SUCCEEDED
    assert engine.batches == [["a red circle"]]


class ShakyImages:
    """An image store that is away for some calls."""

    def __init__(self, num_failures: int):
        self.num_failures = num_failures
        self.files: dict[str, bytes] = {}

    async def put(self, key: str, data: bytes) -> None:
        """Fail as often as told, then keep the file."""
        if self.num_failures > 0:
            self.num_failures -= 1
            raise StoreUnavailable("the disk /mnt/secret is away")
        self.files[key] = data


async def test_an_image_store_that_comes_back_costs_nothing(open_bench, make_job):
    """Writing is repeated, and the job succeeds."""
    images = ShakyImages(2)
    bench = open_bench(images=images)
    (record,) = await bench.run(make_job(1))
    assert record.state is JobState.SUCCEEDED
    assert set(images.files) == {record.result.images[0].storage_key}
    lost = bench.metrics.registry.get_sample_value("sparke_store_errors_total", {"store": "images"})
    assert lost == 2


async def test_an_image_store_that_stays_away_fails_the_job_at_its_deadline(open_bench, make_job):
    """Nothing is remembered of a job whose images could not be kept, and the message names no path."""
    images = ShakyImages(10**6)
    bench = open_bench(images=images)
    (reserved,) = await bench.reserve(make_job(1, deadline_at_ms=now_ms() + 600_000))
    running = bench.start([reserved])
    await eventually(lambda: images.num_failures < 10**6 - 1)
    assert not running.done()
    bench.ahead_ms = 600_000
    await running
    record = await bench.jobs.get(reserved.job.tenant_id, reserved.job.job_id)
    assert record.failure.code == "store_unavailable"
    assert "secret" not in record.failure.message
    assert await bench.version() == 0


async def test_a_job_that_was_taken_away_leaves_nothing_behind(bench, make_job):
    """After its fence is lost, a worker's commit appends no entry and changes no state."""
    [reserved] = await bench.reserve(make_job(1))
    await JobReclaimer(bench.redis, JobLimits(), lease_s=0).reclaim("toy")
    await bench.runner.run([reserved])
    record = await bench.jobs.get(reserved.job.tenant_id, reserved.job.job_id)
    assert record.state is JobState.QUEUED
    assert await bench.version() == 0
    assert bench.metrics.registry.get_sample_value("sparke_jobs_fence_lost_total", {"model": "toy"}) == 1
