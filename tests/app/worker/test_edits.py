"""Edits through the worker: with the demo model, and with the weightless one where the model does not matter."""

import hashlib
import io

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from app.domain.job import JobState
from app.domain.request import Edit
from app.images.store import picture_key
from app.jobs.leases import JobReclaimer
from app.jobs.types import JobLimits
from app.worker.course.png import read_metadata
from sparke_engine.diffusion.engine import PipelineEngine
from sparke_engine.diffusion.pipelines import load_demo_pipeline
from sparke_engine.diffusion.toy import ToyEngine, prompt_digest, read_toy_image
from sparke_engine.guidance.presets import preset_named

pytestmark = pytest.mark.anyio

SIDE_PX = 64
STAR = "a green star on a snow background"


def red_circle() -> Image.Image:
    """A picture as the demo model knows them."""
    picture = Image.new("RGB", (SIDE_PX, SIDE_PX), (240, 240, 250))
    ImageDraw.Draw(picture).ellipse((16, 20, 44, 48), fill=(220, 30, 30))
    return picture


def box_mask() -> Image.Image:
    """Marks a box around the circle."""
    mask = Image.new("L", (SIDE_PX, SIDE_PX))
    mask.paste(255, (8, 12, 56, 56))
    return mask


def file_of(image: Image.Image) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def opened(png: bytes) -> Image.Image:
    """The image of a PNG file."""
    return Image.open(io.BytesIO(png))


def psnr(image: Image.Image, other: Image.Image) -> float:
    """In decibels."""
    error = np.asarray(image, float) - np.asarray(other, float)
    return float(10 * np.log10(255**2 / (error**2).mean()))


@pytest.fixture
def make_edit(make_job):
    """A function that makes a job of a picture and, where there is one, a mask; and its files."""

    def make(number, picture=None, mask=None, *, strength=0.5, edit_strength=0.6, **members):
        files = {"picture": file_of(picture or red_circle())}
        if mask is not None:
            files["mask"] = file_of(mask)
        digests = [hashlib.sha256(data).hexdigest() for data in files.values()]
        edit = Edit(edit_strength, *digests)
        return make_job(number, strength=strength, edit=edit, **members), files

    return make


async def put(bench, *edits):
    """What the API does before it accepts a job; the jobs."""
    for job, files in edits:
        for part, data in files.items():
            await bench.images.put(picture_key(job.tenant_id, job.job_id, part), data)
    return [job for job, _ in edits]


async def run(bench, *edits):
    """The records of jobs that ran as one batch."""
    return await bench.run(*await put(bench, *edits))


@pytest.fixture(scope="module")
def demo():
    """The engine of the shipped model."""
    return PipelineEngine(load_demo_pipeline(), preset_named("demo"))


def stock(engine, kind, prompts, pictures, seeds):
    """The editor of diffusers called by hand for the whole batch."""
    name = "StableDiffusionInpaintPipeline" if kind == "mask" else "StableDiffusionImg2ImgPipeline"
    pipe = getattr(diffusers, name)(**engine.pipeline.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    more = (
        {"mask_image": [box_mask()] * len(seeds), "width": SIDE_PX, "height": SIDE_PX}
        if kind == "mask"
        else {}
    )
    return pipe(
        prompts,
        image=pictures,
        strength=0.6,
        num_inference_steps=6,
        guidance_scale=9.0,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        **more,
    ).images


@pytest.mark.parametrize("kind", ["image", "mask"])
async def test_strength_zero_is_the_stock_editor(open_bench, make_edit, demo, kind):
    """To the bit, in a batch of the same shape, beside a memory that holds the same prompt.

    What the mask keeps is put back by diffusers' own function.
    """
    bench = open_bench(engine=demo)
    mask = box_mask() if kind == "mask" else None
    members = {"strength": 0.0, "steps": 6, "guidance_scale": 9.0, "prompt": STAR}
    await run(bench, make_edit(1, mask=mask, **members))
    flipped = red_circle().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    edits = [
        make_edit(2, mask=mask, num_images=2, seed=11, **members),
        make_edit(3, flipped, mask, seed=40, tenant="other", **members | {"prompt": "a blue ring"}),
    ]
    records = await run(bench, *edits)
    pictures = [red_circle(), red_circle(), flipped]
    expected = stock(demo, kind, [STAR, STAR, "a blue ring"], pictures, (11, 12, 40))
    if mask is not None:
        overlay = demo.pipeline.image_processor.apply_overlay
        expected = [overlay(mask, *both) for both in zip(pictures, expected, strict=True)]
    pngs = [png for record in records for png in await bench.pngs(record)]
    assert [opened(png).tobytes() for png in pngs] == [image.tobytes() for image in expected]
    assert [image.num_neighbours for image in records[0].result.images] == [1, 1]
    assert all(image.push == 0 for image in records[0].result.images)


async def test_a_little_strength_keeps_the_picture_and_a_lot_follows_the_prompt(open_bench, make_edit, demo):
    """At 0.2 it is nearly the picture; at 0.9 it shows what was asked for: green where the circle was red."""
    bench = open_bench(engine=demo)
    members = {"steps": 12, "guidance_scale": 9.0, "prompt": STAR, "seed": 5}
    shown = []
    for number, strength in ((1, 0.2), (2, 0.9)):
        (record,) = await run(bench, make_edit(number, edit_strength=strength, **members))
        shown += [opened(png) for png in await bench.pngs(record)]
    faint, strong = shown
    assert psnr(faint, red_circle()) > 22
    assert psnr(strong, red_circle()) < 16
    red, green, _ = np.asarray(faint, int)[34, 30]
    assert red > green + 100
    red, green, _ = np.asarray(strong, int)[34, 34]
    assert green > red + 50


async def test_inpainting_changes_nothing_outside_the_mask(open_bench, make_edit, demo):
    """To the bit; within it the circle has become the star, at full diversity beside a memory."""
    bench = open_bench(engine=demo)
    members = {"steps": 12, "guidance_scale": 9.0, "prompt": STAR, "edit_strength": 1.0, "strength": 1.0}
    await run(bench, make_edit(1, mask=box_mask(), **members))
    (record,) = await run(bench, make_edit(2, mask=box_mask(), seed=3, **members))
    (image,) = record.result.images
    assert (image.num_neighbours, image.push > 0) == (1, True)
    made = np.asarray(opened((await bench.pngs(record))[0]), int)
    kept = np.asarray(box_mask()) == 0
    assert np.array_equal(made[kept], np.asarray(red_circle(), int)[kept])
    red, green, _ = made[34, 32]
    assert green > red + 50


async def test_an_edit_is_remembered_and_pushed_like_any_image(bench, make_edit, make_job):
    """Into the one memory that text to image has too, in both directions; the file says how it was made."""
    await bench.run(make_job(1))
    job, files = make_edit(2, mask=box_mask(), seed=20)
    (record,) = await run(bench, (job, files))
    (later,) = await bench.run(make_job(3, seed=30))
    found = [(one.memory_version, one.images[0].num_neighbours) for one in (record.result, later.result)]
    assert found == [(1, 1), (2, 2)]
    assert record.result.images[0].push > 0
    (png,) = await bench.pngs(record)
    assert read_metadata(png).edit == job.request.edit
    assert job.request.edit.image_sha256 == hashlib.sha256(files["picture"]).hexdigest()


async def test_every_job_of_a_batch_has_its_own_picture(bench, make_edit):
    """Two tenants in one batch, each image shows its own prompt, seed and picture."""
    dark, light = (Image.new("RGB", (SIDE_PX, SIDE_PX), (level,) * 3) for level in (20, 230))
    edits = [
        make_edit(1, dark, edit_strength=0.1, steps=10, strength=0.0),
        make_edit(
            2, light, edit_strength=0.1, steps=10, strength=0.0, tenant="other", prompt="a star", seed=9
        ),
    ]
    records = await run(bench, *edits)
    shown = [opened((await bench.pngs(record))[0]) for record in records]
    assert [read_toy_image(image) for image in shown] == [
        (prompt_digest("a red circle"), 7),
        (prompt_digest("a star"), 9),
    ]
    means = [np.asarray(image)[16:].mean() for image in shown]
    assert means[0] < 60
    assert means[1] > 190


async def test_another_worker_takes_over_with_the_same_picture(open_bench, make_edit):
    """The first one vanished with the job in hand; the image is as if it had not."""
    one, other = open_bench("one"), open_bench("other")
    await one.reserve(*await put(one, make_edit(1, num_images=2)))
    await JobReclaimer(one.redis, JobLimits(), lease_s=0).reclaim("toy")
    (taken,) = await other.queue.reserve(["toy"], other.worker_id, 4, 1000)
    await other.runner.run([taken])
    record = await other.jobs.get(taken.job.tenant_id, taken.job.job_id)
    assert record.state is JobState.SUCCEEDED
    (alone,) = await run(other, make_edit(2, num_images=2, tenant="other"))
    assert [opened(png).tobytes() for png in await other.pngs(record)] == [
        opened(png).tobytes() for png in await other.pngs(alone)
    ]


@pytest.mark.parametrize(
    ("part", "data", "code"),
    [
        ("picture", None, "picture_gone"),
        ("mask", None, "picture_gone"),
        ("mask", b"no PNG", "corrupt_record"),
        ("picture", file_of(Image.new("RGB", (32, 32))), "invalid_request"),
    ],
    ids=["no picture", "no mask", "not readable", "of another size"],
)
async def test_a_picture_that_cannot_be_used_fails_its_job_alone(bench, make_edit, part, data, code):
    """Each with its code; the other edit of the batch is made."""
    job, files = make_edit(1, mask=box_mask())
    files = {name: found for name, found in files.items() if name != part}
    if data is not None:
        files[part] = data
    bad, good = await run(bench, (job, files), make_edit(2, mask=box_mask(), tenant="other"))
    assert (bad.state, bad.failure.code) == (JobState.FAILED, code)
    assert good.state is JobState.SUCCEEDED


async def test_a_model_that_cannot_edit_says_so(open_bench, make_edit):
    """Where the API could not know it."""
    engine = ToyEngine(preset_named("toy"))
    engine.edits = frozenset({"image"})
    bench = open_bench(engine=engine)
    (refused,) = await run(bench, make_edit(1, mask=box_mask()))
    assert (refused.failure.code, refused.failure.param) == ("model_cannot_edit", "model")
    assert "image" in refused.failure.message
    (made,) = await run(bench, make_edit(2))
    assert made.state is JobState.SUCCEEDED
