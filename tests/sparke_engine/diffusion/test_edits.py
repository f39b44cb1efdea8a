"""Pictures as a beginning: each family's editors, and the toy."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from sparke_engine.diffusion.edits import Picture, num_edit_steps, put_back, whole_cells
from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, SampleGroup
from sparke_engine.diffusion.families import family_of
from sparke_engine.diffusion.toy import ToyEngine, prompt_digest, read_toy_image
from sparke_engine.errors import InvalidArgument, InvalidPlan
from sparke_engine.guidance.presets import DiversityPreset, preset_named
from sparke_engine.memory_bank import MemoryBank

_FAMILIES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "tiny_families.py")))
TINY = {
    "sd": _FAMILIES.tiny.tiny_sd,
    "sdxl": _FAMILIES.tiny.tiny_sdxl,
    "sd3": lambda: _FAMILIES.tiny.tiny_sd3(channels=16),
    "flux": _FAMILIES.tiny_flux,
}
SIZE_PX = (48, 32)
PLAN = DenoisingPlan(*SIZE_PX, steps=4, guidance_scale=4.0, edit_strength=0.5)
PRESET = DiversityPreset(grid=(4, 4), eta=0.8, window=0.5, latent_bandwidth=2.0, max_push=10)
STRIPES = Image.linear_gradient("L").resize(SIZE_PX).convert("RGB")
OTHER = STRIPES.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
MASK = Image.new("L", SIZE_PX)
MASK.paste(255, (16, 0, 32, 32))


def picture(kind: str, image: Image.Image = STRIPES) -> Picture:
    """The stripes, with the mask where the kind is one."""
    return Picture(image, MASK if kind == "mask" else None)


def silent(done: int, num_steps: int) -> None:
    """An `on_step` that does nothing."""


def made(engine: Any, *groups: SampleGroup, plan: DenoisingPlan = PLAN) -> list[list[bytes]]:
    """The images' bytes, group by group."""
    found = engine.generate(groups, plan, silent)
    return [[sample.image.tobytes() for sample in samples] for samples in found]


@pytest.fixture(scope="module", params=sorted(TINY))
def engine(request: pytest.FixtureRequest) -> PipelineEngine:
    """A tiny engine of each family that can edit."""
    pipe = TINY[request.param]()
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return PipelineEngine(pipe, PRESET)


def stock(engine: PipelineEngine, kind: str, seeds: tuple[int, ...]) -> list[Image.Image]:
    """The editor of diffusers called by hand, with its own function for what the mask keeps."""
    own = type(engine.pipeline).__name__.removesuffix("Pipeline")
    name = f"{own}{'Inpaint' if kind == 'mask' else 'Img2Img'}Pipeline"
    more = {"requires_safety_checker": False} if own == "StableDiffusion" else {}
    pipe = getattr(diffusers, name)(**engine.pipeline.components, **more)
    pipe.set_progress_bar_config(disable=True)
    sized = (
        {}
        if name in {"StableDiffusionImg2ImgPipeline", "StableDiffusionXLImg2ImgPipeline"}
        else {
            "width": SIZE_PX[0],
            "height": SIZE_PX[1],
        }
    )
    masked = {"mask_image": [MASK] * len(seeds)} if kind == "mask" else {}
    images = pipe(
        ["a cat"] * len(seeds),
        image=[STRIPES] * len(seeds),
        strength=PLAN.edit_strength,
        num_inference_steps=PLAN.steps,
        guidance_scale=PLAN.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        **sized,
        **masked,
    ).images
    if kind == "image":
        return images
    return [pipe.image_processor.apply_overlay(MASK, STRIPES, image) for image in images]


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_stock_at_strength_zero_and_pushed_above(engine: PipelineEngine, kind: str) -> None:
    """Strength 0 is the stock editor to the bit; beside the memory of it the same seeds part from it."""
    mine = SampleGroup("a cat", "", (1, 2), 0.0, None, picture=picture(kind))
    samples = engine.generate([mine], PLAN, silent)[0]
    assert [sample.image.tobytes() for sample in samples] == [
        image.tobytes() for image in stock(engine, kind, (1, 2))
    ]
    bank, embedding = MemoryBank(), engine.embed_prompts(["a cat"])
    bank.append(torch.stack([sample.feature for sample in samples]), embedding.expand(2, -1))
    known = bank.neighbours(embedding, engine.preset)
    (pushed,) = engine.generate([replace(mine, strength=1.0, neighbours=known)], PLAN, silent)
    assert all(sample.push > 0 for sample in pushed)
    assert all(new.image.tobytes() != old.image.tobytes() for new, old in zip(pushed, samples, strict=True))


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_an_image_depends_on_its_own_picture_alone(engine: PipelineEngine, kind: str) -> None:
    """Another picture and prompt in the same batch change no bit of a pushed group; its own picture does."""
    mine = SampleGroup("a cat", "", (1, 2), 1.0, None, picture=picture(kind))
    beside = SampleGroup("dogs", "", (3,), 0.0, None, picture=picture(kind, OTHER))
    first = made(engine, mine, beside)[0]
    assert made(engine, mine, replace(beside, prompt="a house", picture=picture(kind)))[0] == first
    assert made(engine, replace(mine, picture=picture(kind, OTHER)), beside)[0] != first


def test_text_to_image_is_what_it_was(engine: PipelineEngine) -> None:
    """An edit leaves nothing behind in the parts that it shares."""
    group = SampleGroup("a cat", "", (1,), 0.0, None)
    plan = replace(PLAN, edit_strength=None)
    before = made(engine, group, plan=plan)
    made(engine, replace(group, picture=picture("mask")))
    assert made(engine, group, plan=plan) == before


def test_what_the_mask_keeps_is_the_picture(engine: PipelineEngine) -> None:
    """To the bit, though the mask is a stroke beside the pixels that pipelines look at; and the stroke is painted.

    Latents that a pipeline puts back know nothing of the prompt.
    """
    thin = Image.new("L", SIZE_PX)
    thin.paste(255, (17, 5, 19, 30))
    group = SampleGroup("a cat", "", (1,), 0.0, None, picture=Picture(STRIPES, thin))
    plan = replace(PLAN, edit_strength=1.0, guidance_scale=15.0)
    cat, dogs = (
        np.frombuffer(made(engine, replace(group, prompt=prompt), plan=plan)[0][0], np.uint8).reshape(
            32, 48, 3
        )
        for prompt in ("a cat", "dogs by night")
    )
    marked = np.asarray(thin) == 255
    assert np.array_equal(cat[~marked], np.asarray(STRIPES)[~marked])
    assert (cat[marked] != dogs[marked]).any()


def test_an_editor_has_its_pipelines_settings() -> None:
    """Such as what SDXL conditions on where no negative prompt is given."""
    pipe = diffusers.StableDiffusionXLPipeline(
        **TINY["sdxl"]().components, force_zeros_for_empty_prompt=False
    )
    for kind in ("image", "mask"):
        editor = family_of(pipe).edits.make(pipe, kind)
        assert editor.config.force_zeros_for_empty_prompt is False
        assert editor.unet is pipe.unet


@pytest.mark.parametrize(
    ("change", "plan", "expected", "said"),
    [
        ({}, {"edit_strength": None}, InvalidPlan, "edit_strength"),
        ({"picture": None}, {}, InvalidPlan, "edit_strength"),
        ({}, {"edit_strength": 0.0}, InvalidPlan, "one step"),
        ({}, {"edit_strength": 0.2}, InvalidPlan, "one step"),
        ({}, {"edit_strength": 1.5}, InvalidPlan, "at most 1"),
        ({"picture": Picture(STRIPES.resize((64, 64)))}, {}, InvalidArgument, "48"),
        ({"picture": Picture(STRIPES.convert("L"))}, {}, InvalidArgument, "RGB"),
        ({"picture": Picture(STRIPES, STRIPES)}, {}, InvalidArgument, "mode L"),
    ],
)
def test_impossible_edits_are_refused(change: dict, plan: dict, expected: type, said: str) -> None:
    """By the toy as by any engine, with what was expected."""
    group = replace(SampleGroup("a cat", "", (1,), 0.0, None, picture=picture("image")), **change)
    with pytest.raises(expected, match=said):
        made(ToyEngine(preset_named("toy")), group, plan=replace(PLAN, **plan))


def test_a_batch_edits_in_one_way() -> None:
    """Groups with a mask, without one and without a picture do not mix."""
    groups = [SampleGroup("a cat", "", (1,), 0.0, None, picture=picture(kind)) for kind in ("image", "mask")]
    with pytest.raises(InvalidArgument, match="groups"):
        made(ToyEngine(preset_named("toy")), *groups)


def test_a_family_without_editors_says_so() -> None:
    """PixArt's parts make up no editor."""
    engine = PipelineEngine(_FAMILIES.tiny_pixart(), PRESET)
    assert engine.edits == frozenset()
    with pytest.raises(InvalidArgument, match="cannot edit by image"):
        made(engine, SampleGroup("a cat", "", (1,), 0.0, None, picture=picture("image")))


def test_a_mask_is_grown_to_whole_cells() -> None:
    """Every cell with a marked pixel is marked, no other is, and the last ones are cut at the edge."""
    mask = Image.new("L", (10, 10))
    for place in ((0, 0), (5, 6), (9, 9)):
        mask.putpixel(place, 255)
    expected = np.zeros((10, 10), np.uint8)
    expected[0:4, 0:4] = expected[4:8, 4:8] = expected[8:, 8:] = 255
    assert np.array_equal(np.asarray(whole_cells(mask, 4)), expected)
    assert whole_cells(MASK, 16).tobytes() == MASK.tobytes()


def test_what_is_put_back() -> None:
    """The picture's pixels where the mask is 0; without a mask nothing."""
    red = Image.new("RGB", SIZE_PX, "red")
    both = np.asarray(put_back(picture("mask"), red))
    assert (both[:, 16:32] == (255, 0, 0)).all()
    assert np.array_equal(both[:, :16], np.asarray(STRIPES)[:, :16])
    assert put_back(picture("image"), red) is red
    assert put_back(None, red) is red


@pytest.mark.parametrize(
    ("steps", "strength", "expected"), [(10, 0.05, 0), (10, 0.1, 1), (12, 0.8, 9), (3, 1.0, 3)]
)
def test_steps_are_counted_as_diffusers_does(steps: int, strength: float, expected: int) -> None:
    """Rounded down."""
    assert num_edit_steps(steps, strength) == expected


def test_the_toy_shows_what_it_edits() -> None:
    """At low strength the picture, with a mask only outside it; prompt and seed can be read where nothing is put back."""
    engine = ToyEngine(preset_named("toy"))
    half = Image.new("RGB", SIZE_PX, "black")
    half.paste((200, 200, 200), (24, 0, 48, 32))
    group = SampleGroup("a cat", "", (7,), 0.0, None, picture=Picture(half))
    ((faint,),) = engine.generate([group], replace(PLAN, edit_strength=0.25), silent)
    ((strong,),) = engine.generate([group], replace(PLAN, edit_strength=1.0), silent)
    ((plain,),) = engine.generate([replace(group, picture=None)], replace(PLAN, edit_strength=None), silent)
    errors = [
        np.abs(np.asarray(sample.image, float)[8:] - np.asarray(half, float)[8:]).mean()
        for sample in (faint, strong)
    ]
    assert errors[0] < errors[1] / 2
    assert read_toy_image(faint.image) == (prompt_digest("a cat"), 7)
    assert strong.image.tobytes() == plain.image.tobytes()
