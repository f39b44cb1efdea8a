"""A push that a caller compiles with his model: one graph, and the same numbers."""

import subprocess
import sys

import pytest

# In a process of its own: the types of arguments, which all tests check, cannot be compiled.
PROGRAM = """
import sys

import torch

from sparke_engine.guidance.denoised import Extrapolation, denoised_push
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries
from sparke_engine.memory_bank import MemoryBank

preset = DiversityPreset(grid=(4, 4), eta=0.8, window=0.5, relax=0.5, latent_bandwidth=1.5, max_push=10)


def rows(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def push():
    extrapolation = Extrapolation(prompted, scale)
    return denoised_push(
        clean, entries, preset, eta=1.0, limit=limit, extrapolation=extrapolation, relax=0.5
    ).delta


bank, prompt = MemoryBank(), torch.nn.functional.normalize(rows(0, 1, 8))
latents = rows(1, 5, 4, 8, 8)
bank.append(preset.feature_map.feature(latents), prompt.expand(5, -1))
entries = Entries.of(bank.neighbours(prompt, preset), prompt[0], preset)
clean, prompted = rows(2, 2, 4, 8, 8), rows(3, 2, 4, 8, 8)
limit, scale = torch.ones(2), torch.full((2,), 7.5)
with torch.inference_mode("inference" in sys.argv):
    compiled = torch.compile(push, fullgraph=True, dynamic=False, backend="eager")
    assert torch.equal(compiled(), push())
    assert push().abs().max() > 0
"""


@pytest.mark.parametrize("mode", ["gradients", "inference"])
def test_a_push_is_one_graph(mode: str) -> None:
    """Nothing in it breaks the graph, and compiled it is what it is without."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
