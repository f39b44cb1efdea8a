"""Rivals on a CUDA device: the same pushes as on the CPU, and a half-precision pipeline that runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparke_engine.baselines import decoder_of, make_rival
from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, SampleGroup
from sparke_engine.diffusion.guide import GuidedGroup
from sparke_engine.diffusion.pipelines import load_engine
from sparke_engine.diffusion.schedulers import NoiseLevel
from sparke_engine.diffusion.steps import Step
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries
from sparke_engine.memory_bank import MemoryBank
from sparke_engine.types import Neighbours

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
PRESET = DiversityPreset(grid=(4, 4))
RIVALS: dict[str, dict[str, Any]] = {
    "interval": {"high": 1.0},
    "cads": {"noise_scale": 0.5},
    "particles": {"coefficient": 20.0},
    "spell": {"radius": 1.7},
    "vendi": {"eta": 0.2},
    "paper": {"eta": 0.2, "interval": 2},
    "released": {"eta": 0.2, "interval": 2},
}


@pytest.mark.parametrize("name", ["interval", "particles", "spell", "vendi"])
def test_a_push_is_the_cpus(name: str) -> None:
    """Pushes of a batch, entries on the host, agree with the CPU's to fp32's rounding of sums."""
    generator = torch.Generator().manual_seed(0)
    clean, prompted = (torch.randn(5, 4, 16, 16, generator=generator) for _ in range(2))
    entries = Entries(
        PRESET.feature_map.feature(torch.randn(9, 4, 16, 16, generator=generator)), torch.ones(9)
    )
    groups = [
        GuidedGroup(slice(0, 3), PRESET, 0.7, entries),
        GuidedGroup(slice(3, 5), PRESET, 1.0, entries),  # two: one particle alone is not pushed
    ]
    found: list[list[Tensor]] = []
    for device in ("cpu", "cuda"):
        here, there = clean.to(device), prompted.to(device)
        step = Step(
            0,
            10,
            lambda here=here: here,
            lambda there=there: there,
            sample=here,
            guidance_scale=5.0,
            noise=lambda: NoiseLevel(0.5, 0.8),
        )
        moves = make_rival(name, **RIVALS[name]).guide(groups).before(step)
        found.append([move.delta.cpu() for move in moves])
    for one, other in zip(*found, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", RIVALS)
def test_a_half_precision_pipeline_runs(model_directories: dict[str, Path], name: str) -> None:
    """Under every rival a float16 pipeline makes images that differ from the stock ones."""
    rival = make_rival(name, **RIVALS[name])
    engine = load_engine(
        str(model_directories["sd"]), dtype="float16", device="cuda", preset=rival.preset(PRESET)
    )
    assert isinstance(engine, PipelineEngine)
    plan = DenoisingPlan(width_px=32, height_px=32, steps=6, guidance_scale=5.0)
    (stock,) = engine.generate([SampleGroup("a cat", "", (1, 2), 0.0, None)], plan, lambda _done, _all: None)
    bank, embedding = MemoryBank(), engine.embed_prompts(["a cat"])
    bank.append(torch.stack([sample.feature for sample in stock]), embedding.expand(2, -1))
    engine.method = rival
    (samples,) = engine.generate(
        [SampleGroup("a cat", "", (1, 2), 1.0, bank.neighbours(embedding, engine.preset))],
        plan,
        lambda _done, _all: None,
    )
    for sample, other in zip(samples, stock, strict=True):
        assert sample.image.tobytes() != other.image.tobytes()


# Autograd's own thread meets cuBLAS there before anything has given it a context; torch sets the device's and goes on.
@pytest.mark.filterwarnings(
    "ignore:Attempting to run cuBLAS, but there was no current CUDA context:UserWarning"
)
def test_ambient_guidance_runs_in_half_precision(model_directories: dict[str, Path]) -> None:
    """Through a float16 autoencoder and an fp32 encoder, with a bank on the host, images change."""
    engine = load_engine(str(model_directories["sd"]), dtype="float16", device="cuda", preset=PRESET)
    assert isinstance(engine, PipelineEngine)
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.Flatten(), nn.Linear(8 * 7 * 7, 16)).cuda()
    bank, embedding = MemoryBank(), engine.embed_prompts(["a cat"])
    bank.append(torch.randn(4, 16), embedding.expand(4, -1))
    plan = DenoisingPlan(width_px=32, height_px=32, steps=4, guidance_scale=5.0)
    known = Neighbours.of(torch.ones(1, 1, engine.feature_dim), embedding[None])
    images = []
    for eta in (0.0, 0.3):
        decode = decoder_of(engine.pipeline)
        engine.method = make_rival("ambient", decode=decode, encode=tower, bank=bank, eta=eta)
        (samples,) = engine.generate(
            [SampleGroup("a cat", "", (1, 2), 1.0, known)], plan, lambda _done, _all: None
        )
        images.append([sample.image.tobytes() for sample in samples])
    assert all(one != other for one, other in zip(*images, strict=True))
