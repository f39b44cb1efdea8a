"""Under `torch.autocast` guidance is what it is without: given the same x̂0, the same push to the bit."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from sparke_engine import MemoryBank, guided, load_demo_pipeline, remember_pictures
from sparke_engine.diffusion.guide import GroupGuide, GuidedGroup
from sparke_engine.diffusion.library import default_preset
from sparke_engine.diffusion.steps import Step
from sparke_engine.guidance.presets import PAPER, RELEASED, DiversityPreset
from sparke_engine.guidance.push import Entries, Reference

PRESET = DiversityPreset(grid=(4, 4), eta=0.5, window=0.5, relax=0.5, latent_bandwidth=1.5, max_push=10)
PRESETS = {
    "denoised": PRESET,
    "denoised, cosine": replace(PRESET, kernel="cosine", min_prompt_kernel=0.0),
    "denoised, vendi": replace(PRESET, objective="vendi"),
    "paper": replace(PAPER, interval=1),
    "paper, vendi": replace(PAPER, interval=1, objective="vendi"),
    "released": replace(RELEASED, interval=1),
}


@pytest.fixture(scope="module")
def pipe() -> Any:
    """The model that ships: its denoiser is large enough for autocast to be felt."""
    return load_demo_pipeline()


def latents_of(seed: int, n: int) -> Tensor:
    """Random latents."""
    return torch.randn(n, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def pushes(preset: DiversityPreset) -> list[Tensor]:
    """All that a memory, fellow images, guidance's scale and references do to a step of two images."""
    bank, prompt = MemoryBank(), torch.randn(1, 32, generator=torch.Generator().manual_seed(5))
    bank.append(preset.feature_map.feature(latents_of(1, 60)), prompt + 0.01 * torch.ones(60, 32))
    entries = Entries.of(bank.neighbours(prompt, preset), prompt[0], preset)
    reference = Reference(Entries(bank.features[:40], torch.ones(40)), -0.8)
    group = GuidedGroup(slice(0, 2), preset, 0.8, entries, references=(reference,))
    clean, prompted = latents_of(2, 2), latents_of(3, 2)
    step = Step(0, 10, lambda: clean, lambda: prompted, guidance_scale=lambda: torch.full((2,), 4.0))
    guide = GroupGuide([group])
    moves = [*guide.displace(step), *guide.before(step), *guide.after(step, clean)]
    guide.finish(clean, 10)
    return [*(move.delta for move in moves), guide.runs[0].pushes, bank.features]


@pytest.mark.parametrize("name", PRESETS)
def test_a_push_is_the_same_under_autocast(name: str) -> None:
    """In every mode and objective, references included."""
    expected = pushes(PRESETS[name])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = pushes(PRESETS[name])
    assert (expected[-2] > 0).all()
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


def test_no_push_vanishes_under_autocast(pipe: Any) -> None:
    """The denoiser's x̂0 is rounded, its push is not lost: not for one image of twelve, by memory or by a reference."""
    memory, reference = MemoryBank(), MemoryBank()
    lead = torch.randn(60, 16, generator=torch.Generator().manual_seed(3))

    def made(bank: MemoryBank, seed: int, **more: Any) -> Tensor:
        with guided(pipe, bank, "a star", **more) as guide:
            pipe(
                "a star",
                num_images_per_prompt=4,
                num_inference_steps=8,
                output_type="latent",
                generator=[torch.Generator().manual_seed(seed + image) for image in range(4)],
            )
        return guide.runs[0].pushes

    made(memory, 0, strength=0.0)
    reference.append(lead, memory.prompt_embeddings[:1].expand(60, -1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for seed in (100, 200, 300):
            assert (made(memory, seed) > 0).all()
        led = made(memory, 400, strength=0.0, context=(reference, 1.0), remember=False)
    assert (led > 0).all()


def test_what_is_remembered_is_as_exact(pipe: Any) -> None:
    """Features of images and of pictures are those of their latents to the bit."""
    bank, feature_map = MemoryBank(), default_preset(pipe).feature_map
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with guided(pipe, bank, "a star") as guide:
            pipe("a star", num_inference_steps=2, output_type="latent")
        remember_pictures(pipe, bank, [Image.new("RGB", (64, 64), "red")])
    expected = MemoryBank()
    expected.append(feature_map.feature(guide.runs[0].latents), torch.ones(1, 1))
    assert torch.equal(bank.features[:1], expected.features)
    assert float(bank.features[1].double().norm()) == pytest.approx(1.0, abs=1e-6)
