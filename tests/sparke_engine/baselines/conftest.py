"""What rivals see in tests: random clean latents, entries, steps."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparke_engine.baselines.rival import Seen
from sparke_engine.diffusion.guide import GuidedGroup
from sparke_engine.diffusion.schedulers import NoiseLevel
from sparke_engine.diffusion.steps import Step
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries

GRID = (2, 2)


@pytest.fixture
def latents_of() -> Callable[..., Tensor]:
    """Random latents [n,4,4,4] by seed."""

    def latents(seed: int, n: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(n, 4, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
            dtype
        )

    return latents


@pytest.fixture
def seen_of() -> Callable[..., Seen]:
    """What a rival sees of these clean latents, and of entries where some are given."""

    def seen(
        clean: Tensor,
        entries: Entries | None = None,
        *,
        grid: tuple[int, int] | None = GRID,
        index: int = 0,
        noisy: Tensor | None = None,
        prompted: Tensor | None = None,
        noise: NoiseLevel = NoiseLevel(0.6, 0.8),  # noqa: B008 - an immutable value
        scale: float = 5.0,
    ) -> Seen:
        preset = DiversityPreset(grid=grid)
        dim = preset.feature_map.dim(*clean.shape[1:])
        step = Step(
            index,
            10,
            lambda: clean,
            None if prompted is None else lambda: prompted,
            sample=clean if noisy is None else noisy,
            guidance_scale=scale,
            noise=lambda: noise,
        )
        if entries is None:
            entries = Entries(clean.new_zeros(0, dim), clean.new_zeros(0))
        return Seen(GuidedGroup(slice(None), preset, 1.0, entries), step, clean, entries)

    return seen
