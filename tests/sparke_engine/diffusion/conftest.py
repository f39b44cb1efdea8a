"""Tiny engines of every family that is served."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sparke_engine.diffusion.engine import PipelineEngine
from sparke_engine.diffusion.pipelines import load_engine
from sparke_engine.guidance.presets import DiversityPreset

_PRESET = DiversityPreset(grid=(4, 4), eta=0.8, window=0.5, latent_bandwidth=2.0, max_push=10)


@pytest.fixture
def load(model_directories: dict[str, Path]) -> Callable[[str], PipelineEngine]:
    """Loads a tiny engine by family, with a preset that pools to 4×4 cells."""

    def loaded(family: str) -> PipelineEngine:
        engine = load_engine(str(model_directories[family]), preset=_PRESET)
        assert isinstance(engine, PipelineEngine)
        return engine

    return loaded
