"""The families that engines serve beside Stable Diffusion: their own arguments, sizes, prompts and lengths."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, Sample, SampleGroup
from sparke_engine.diffusion.families import served_pipelines
from sparke_engine.diffusion.pipelines import load_engine
from sparke_engine.errors import InvalidPlan, UnsupportedPipeline
from sparke_engine.guidance.presets import PAPER, DiversityPreset, preset_named
from sparke_engine.memory_bank import MemoryBank

PRESET = DiversityPreset(grid=(4, 4), eta=0.8, window=0.5, latent_bandwidth=2.0, max_push=10)
PLAN = DenoisingPlan(width_px=64, height_px=32, steps=4, guidance_scale=4.0)
FAMILIES = ["flux", "pixart", "sana"]
Load = Callable[..., PipelineEngine]


@pytest.fixture
def load(model_directories: dict[str, Path]) -> Load:
    """Loads a tiny engine by family."""

    def loaded(family: str, preset: DiversityPreset | str = PRESET) -> PipelineEngine:
        engine = load_engine(str(model_directories[family]), preset=preset)
        assert isinstance(engine, PipelineEngine)
        return engine

    return loaded


def silent(done: int, num_steps: int) -> None:
    """An `on_step` that does nothing."""


def generate(engine: PipelineEngine, *groups: SampleGroup) -> list[list[Sample]]:
    """One batch."""
    return engine.generate(groups, PLAN, silent)


def pixels(*groups: list[Sample]) -> list[bytes]:
    """The images' bytes."""
    return [sample.image.tobytes() for group in groups for sample in group]


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_at_strength_zero_and_pushed_above(load: Load, family: str) -> None:
    """Strength 0 is the pipeline called by hand; beside the memory of it the same seeds part from it."""
    engine = load(family)
    more = {} if family == "flux" else {"use_resolution_binning": False}
    expected = engine.pipeline(
        ["a cat", "a cat"],
        width=PLAN.width_px,
        height=PLAN.height_px,
        num_inference_steps=PLAN.steps,
        guidance_scale=PLAN.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
        **more,
    ).images
    (stock,) = generate(engine, SampleGroup("a cat", "", (1, 2), 0.0, None))
    assert pixels(stock) == [image.tobytes() for image in expected]
    assert stock[0].feature.shape == (engine.feature_dim,)
    bank, embedding = MemoryBank(), engine.embed_prompts(["a cat"])
    bank.append(torch.stack([sample.feature for sample in stock]), embedding.expand(2, -1))
    known = bank.neighbours(embedding, engine.preset)
    (pushed,) = generate(engine, SampleGroup("a cat", "", (1, 2), 1.0, known))
    assert all(sample.push > 0 for sample in pushed)
    assert all(float(a.feature @ b.feature) < 0.999 for a, b in zip(stock, pushed, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_depends_on_its_group_alone(load: Load, family: str) -> None:
    """What else is in a batch of the same shape changes no bit of a pushed group."""
    engine = load(family)
    mine = SampleGroup("a cat", "", (1, 2), 1.0, None)
    others = [SampleGroup("dogs", "", (3,), 0.0, None), SampleGroup("a house by night", "", (4,), 1.0, None)]
    first, second = (generate(engine, mine, other)[0] for other in others)
    assert pixels(first) == pixels(second)
    assert [sample.push for sample in first] == [sample.push for sample in second]


@pytest.mark.parametrize("family", ["pixart", "sana"])
def test_negative_prompts_reach_the_pipeline(load: Load, family: str) -> None:
    """In a batch of both, a group's negative prompt is its own: the others' images are as without it."""
    engine = load(family)
    plain, other = SampleGroup("a cat", "", (1,), 0.0, None), SampleGroup("a cat", "", (2,), 0.0, None)
    without = generate(engine, plain, other)
    beside = generate(engine, plain, replace(other, negative_prompt="zebras"))
    assert pixels(without[0]) == pixels(beside[0])
    assert pixels(without[1]) != pixels(beside[1])


def test_a_distilled_model_refuses_a_negative_prompt(load: Load) -> None:
    """FLUX has no second prediction; the message says to leave it out."""
    with pytest.raises(InvalidPlan, match="leave it out"):
        generate(load("flux"), SampleGroup("a cat", "zebras", (1,), 0.0, None))


@pytest.mark.parametrize(("family", "multiple_px"), [("flux", 8), ("pixart", 8), ("sana", 32)])
def test_sides_are_multiples(load: Load, family: str, multiple_px: int) -> None:
    """A side is a multiple of what autoencoder, patches and pipeline need together."""
    engine, group = load(family), SampleGroup("a cat", "", (1,), 0.0, None)
    for wrong_px in (multiple_px - 4, multiple_px + 4, 0):
        with pytest.raises(InvalidPlan, match=f"multiples of {multiple_px} px"):
            engine.generate([group], replace(PLAN, width_px=32 + wrong_px if wrong_px else 0), silent)
    (made,) = engine.generate([group], replace(PLAN, width_px=32 + multiple_px), silent)
    assert made[0].image.size == (32 + multiple_px, PLAN.height_px)


@pytest.mark.parametrize("family", FAMILIES)
def test_presets_and_lengths(load: Load, family: str) -> None:
    """A family has its own preset, and features as long as its canonical latents make them."""
    engine = load(family, "default")
    assert engine.preset == preset_named(family)
    grid = engine.preset.grid
    assert grid is not None
    assert engine.feature_dim == 4 * grid[0] * grid[1]
    side = 128 if family == "flux" else 8  # FLUX does not say in its weights for which size they are
    assert load(family, PAPER).feature_dim == 4 * side * side


def test_other_pipelines_are_not_served(model_directories: dict[str, Path], tmp_path: Path) -> None:
    """A class that is no pipeline from text alone is refused by name, when it is loaded and by the engine."""
    pipe: Any = load_engine(str(model_directories["sd"])).pipeline  # type: ignore[attr-defined]

    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    with pytest.raises(UnsupportedPipeline, match="Img2Img"):
        PipelineEngine(other, PRESET)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UnsupportedPipeline, match="Img2Img"):
        load_engine(str(tmp_path / "other"))
    assert "StableDiffusionImg2ImgPipeline" not in served_pipelines()
