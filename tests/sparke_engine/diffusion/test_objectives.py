"""Every objective through an engine: a memory parts images, to the same bits beside other groups and in a replay."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from sparke_engine.diffusion.engine import DenoisingPlan, ImageEngine, Sample, SampleGroup
from sparke_engine.diffusion.pipelines import load_engine
from sparke_engine.guidance.presets import DiversityPreset, preset_named
from sparke_engine.memory_bank import MemoryBank

PLAN = DenoisingPlan(width_px=64, height_px=48, steps=5, guidance_scale=5.0)
PRESETS = [
    replace(
        preset_named("toy"),
        objective=objective,
        kernel=kernel,
        conditional=conditional,
        min_prompt_kernel=0.0,
        max_spectral_entries=12,
    )
    for objective, kernel, conditional in product(("rke", "vendi"), ("gaussian", "cosine"), (True, False))
]


def made(engine: ImageEngine, bank: MemoryBank, strength: float, *beside: SampleGroup) -> list[Sample]:
    """Two images of one prompt, first in a batch."""
    neighbours = bank.neighbours(engine.embed_prompts(["a cat"]), engine.preset) if len(bank) else None
    group = SampleGroup("a cat", "", (1, 2), strength, neighbours)
    return engine.generate([group, *beside], PLAN, lambda _done, _all: None)[0]


def mean_nearness(samples: list[Sample]) -> float:
    """The mean of what each sample says of its nearest neighbour."""
    values = [sample.nearest_similarity for sample in samples if sample.nearest_similarity is not None]
    assert len(values) == len(samples)
    return sum(values) / len(values)


@pytest.mark.parametrize("preset", PRESETS)
def test_images_part_from_the_memory(preset: DiversityPreset) -> None:
    """With more entries than a spectrum takes: images are farther from them than without, and the same every time."""
    engine, bank = load_engine("builtin:toy", preset=preset), MemoryBank()
    features = torch.stack([sample.feature for sample in made(engine, bank, 0.0)])
    generator = torch.Generator().manual_seed(0)
    around = features.repeat(10, 1) + 0.03 * torch.randn(20, features.shape[1], generator=generator)
    bank.append(around, engine.embed_prompts(["a cat", "a dog"]).repeat(10, 1))
    plain, pushed = made(engine, bank, 0.0), made(engine, bank, 1.0)
    assert mean_nearness(pushed) < mean_nearness(plain) - 1e-3
    beside = SampleGroup("zebras", "", (4, 5, 6), 0.5, None)
    again = made(engine, bank, 1.0, beside)
    assert [sample.image.tobytes() for sample in again] == [sample.image.tobytes() for sample in pushed]
