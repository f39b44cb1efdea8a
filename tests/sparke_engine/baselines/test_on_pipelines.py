"""Every rival on a tiny Stable Diffusion: it runs, it changes images, zero is stock, images stay their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparke_engine.baselines import RIVALS, Cads, Rival, make_rival
from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, Sample, SampleGroup
from sparke_engine.diffusion.pipelines import load_engine
from sparke_engine.errors import UnsupportedPipeline
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.memory_bank import MemoryBank

PRESET = DiversityPreset(grid=(4, 4), latent_bandwidth=1.5)
PLAN = DenoisingPlan(width_px=32, height_px=32, steps=6, guidance_scale=5.0)
# Each strong enough to be seen in six steps on random weights; and what turns it off.
STRONG: dict[str, dict[str, Any]] = {
    "interval": {"high": 1.0},
    "cads": {"noise_scale": 2.0},
    "particles": {"coefficient": 100.0},
    "spell": {"radius": 1.7},
    "vendi": {"eta": 0.3},
    "paper": {"eta": 0.2, "interval": 2},
    "released": {"eta": 0.2, "interval": 2},
}
OFF: dict[str, dict[str, Any]] = {
    "cfg": {},
    "interval": {"low": 0.0, "high": float("inf")},
    "cads": {"noise_scale": 0.0},
    "particles": {"coefficient": 0.0},
    "spell": {"radius": 0.0},
    "vendi": {"eta": 0.0},
}
Load = Callable[..., PipelineEngine]


@pytest.fixture
def load(model_directories: dict[str, Path]) -> Load:
    """A tiny engine under a rival."""

    def loaded(rival: Rival, family: str = "sd", **more: Any) -> PipelineEngine:
        engine = load_engine(str(model_directories[family]), preset=rival.preset(PRESET), **more)
        assert isinstance(engine, PipelineEngine)
        engine.method = rival
        return engine

    return loaded


def silent(done: int, num_steps: int) -> None:
    """An `on_step` that does nothing."""


def made(
    engine: PipelineEngine,
    *groups: tuple[str, tuple[int, ...]],
    strength: float = 1.0,
    bank: MemoryBank | None = None,
) -> list[list[Sample]]:
    """The samples of groups (prompt, seeds), which share a bank."""
    asked = [
        SampleGroup(
            prompt,
            "",
            seeds,
            strength,
            None if bank is None else bank.neighbours(engine.embed_prompts([prompt]), engine.preset),
        )
        for prompt, seeds in groups
    ]
    return engine.generate(asked, PLAN, silent)


def bank_of(engine: PipelineEngine) -> MemoryBank:
    """Three images of one prompt that are in the memory."""
    (samples,) = made(engine, ("a cat", (11, 12, 13)), strength=0.0)
    bank, embedding = MemoryBank(), engine.embed_prompts(["a cat"])
    bank.append(torch.stack([sample.feature for sample in samples]), embedding.expand(3, -1))
    return bank


def pixels(samples: list[Sample]) -> list[bytes]:
    """The images' bytes."""
    return [sample.image.tobytes() for sample in samples]


def stock_of(engine: PipelineEngine, prompts: list[str], seeds: list[int]) -> list[bytes]:
    """The stock pipeline's images."""
    images = engine.pipeline(
        prompt=prompts,
        width=PLAN.width_px,
        height=PLAN.height_px,
        num_inference_steps=PLAN.steps,
        guidance_scale=PLAN.guidance_scale,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
    ).images
    return [image.tobytes() for image in images]


def test_all_are_tested() -> None:
    """No rival is left out here, but the one that has a file of its own."""
    assert set(STRONG) | {"cfg", "ambient"} == set(RIVALS)
    assert set(OFF) | {"paper", "released", "ambient"} == set(RIVALS)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("name", STRONG)
def test_a_rival_changes_images(load: Load, name: str, scheduler: str) -> None:
    """With a memory at hand, a rival's images are not the stock ones, and the pipeline is whole afterwards."""
    engine = load(make_rival(name, **STRONG[name]), scheduler=scheduler)
    (samples,) = made(engine, ("a cat", (1, 2)), bank=bank_of(engine))
    stock = stock_of(engine, ["a cat"] * 2, [1, 2])
    assert all(image != other for image, other in zip(pixels(samples), stock, strict=True))
    assert name == "cads" or all(sample.push > 0 for sample in samples)
    assert not engine.pipeline.unet._forward_pre_hooks
    assert "step" not in vars(engine.pipeline.scheduler)


@pytest.mark.parametrize("name", OFF)
def test_off_is_stock(load: Load, name: str) -> None:
    """A rival whose knob is at zero leaves the stock images to the bit, at strength 1 and with a memory."""
    engine = load(make_rival(name, **OFF[name]))
    (samples,) = made(engine, ("a cat", (1, 2)), bank=bank_of(engine))
    assert pixels(samples) == stock_of(engine, ["a cat"] * 2, [1, 2])


@pytest.mark.parametrize("name", sorted(set(STRONG) - {"cads"}))
def test_strength_zero_is_stock(load: Load, name: str) -> None:
    """A group of strength 0 is the stock pipeline's to the bit, beside one of strength 1."""
    engine = load(make_rival(name, **STRONG[name]))
    bank = bank_of(engine)
    known = bank.neighbours(engine.embed_prompts(["a cat"]), engine.preset)
    groups = [SampleGroup("a cat", "", (1,), 0.0, known), SampleGroup("a cat", "", (2, 3), 1.0, known)]
    quiet, loud = engine.generate(groups, PLAN, silent)
    stock = stock_of(engine, ["a cat"] * 3, [1, 2, 3])
    assert pixels(quiet) == stock[:1]
    assert pixels(loud) != stock[1:]


@pytest.mark.parametrize("name", STRONG)
def test_images_stay_their_own(load: Load, name: str) -> None:
    """In a batch of the same shape, a group's images are bit-identical whatever its batch-mates are."""
    engine = load(make_rival(name, **STRONG[name]))
    bank = bank_of(engine)
    seen = set()
    for other in (("a dog", (5,)), ("zebras", (6,))):
        first, _ = made(engine, ("a cat", (1, 2)), other, bank=bank)
        seen.add(tuple(pixels(first)))
    assert len(seen) == 1


def test_cads_on_other_families(load: Load) -> None:
    """SDXL and Stable Diffusion 3 read their prompt by the same name, and their images change."""
    for family in ("sdxl", "sd3"):
        engine = load(Cads(noise_scale=2.0), family)
        (samples,) = made(engine, ("a cat", (1,)))
        assert pixels(samples) != stock_of(engine, ["a cat"], [1])


def test_cads_refuses_what_it_cannot_noise(load: Load) -> None:
    """A denoiser that reads its conditioning under another name is an error, before anything ran."""
    engine = load(Cads())
    engine.pipeline.unet = torch.nn.Conv2d(4, 4, 1)
    with pytest.raises(UnsupportedPipeline, match="Conv2d"), Cads().around(engine.pipeline, [1]):
        pass
