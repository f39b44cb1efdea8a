"""Only images of near prompts push: on the demo model, whose text encoder tells prompts apart."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from sparke_engine import MemoryBank, guided, load_demo_pipeline
from sparke_engine.diffusion.families import embed_prompt
from sparke_engine.guidance.presets import DiversityPreset, preset_named

DEMO = preset_named("demo")


@pytest.fixture(scope="module")
def pipe() -> Any:
    """The demo model."""
    return load_demo_pipeline()


def star(pipe: Any, bank: MemoryBank, preset: DiversityPreset) -> bytes:
    """The pixels of a star, made beside a bank."""
    with guided(pipe, bank, "a star", preset=preset):
        image = pipe("a star", num_inference_steps=4, generator=torch.Generator().manual_seed(1)).images[0]
    return bytes(image.tobytes())


def bank_of(pipe: Any, prompt: str, size: int) -> MemoryBank:
    """Many random images of one prompt: what is near a star's latents is among them."""
    bank = MemoryBank()
    features = torch.randn(size, DEMO.feature_map.dim(4, 16, 16), generator=torch.Generator().manual_seed(0))
    bank.append(features, embed_prompt(pipe, prompt).expand(size, -1))
    return bank


@pytest.mark.parametrize("prompt", ["a circle", "a heart", "a red star", "a star on snow"])
def test_an_unrelated_memory_changes_no_bit(pipe: Any, prompt: str) -> None:
    """However large it is: other shapes, and stars of which more is stated."""
    assert star(pipe, bank_of(pipe, prompt, 2000), DEMO) == star(pipe, MemoryBank(), DEMO)


@pytest.mark.parametrize("prompt", ["a star", "one star"])
def test_a_related_memory_does(pipe: Any, prompt: str) -> None:
    """The same prompt, and another way to say it."""
    assert star(pipe, bank_of(pipe, prompt, 2000), DEMO) != star(pipe, MemoryBank(), DEMO)


def test_unconditional_guidance_does_not_tell_prompts_apart(pipe: Any) -> None:
    """Without the prompt kernel, circles push a star."""
    blind = replace(DEMO, conditional=False, min_prompt_kernel=0.0)
    assert star(pipe, bank_of(pipe, "a circle", 2000), blind) != star(pipe, MemoryBank(), blind)
