"""Half-precision models on a CUDA device: the stock pipeline's bits at strength 0, fp32 guidance beside them."""

from pathlib import Path

import pytest
import torch

from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, Sample, SampleGroup
from sparke_engine.diffusion.pipelines import load_engine
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.memory_bank import MemoryBank

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
PRESET = DiversityPreset(grid=(4, 4), eta=0.8, window=0.5, relax=0.5, latent_bandwidth=1.5, max_push=10)
PLAN = DenoisingPlan(width_px=32, height_px=32, steps=6, guidance_scale=5.0)
MODELS = [("sd", "float16"), ("sdxl", "float16"), ("sdxl", "bfloat16"), ("sd3", "bfloat16")]


def engine_of(directory: Path, dtype: str) -> PipelineEngine:
    """A tiny engine on the device."""
    engine = load_engine(str(directory), dtype=dtype, device="cuda", preset=PRESET)
    assert isinstance(engine, PipelineEngine)
    return engine


def made(engine: PipelineEngine, strength: float, bank: MemoryBank) -> list[Sample]:
    """Two images of one prompt."""
    neighbours = bank.neighbours(engine.embed_prompts(["a cat"]), PRESET) if len(bank) else None
    (samples,) = engine.generate(
        [SampleGroup("a cat", "", (1, 2), strength, neighbours)], PLAN, lambda _done, _all: None
    )
    return samples


@pytest.mark.parametrize(("family", "dtype"), MODELS)
def test_strength_zero_is_the_stock_pipeline(
    model_directories: dict[str, Path], family: str, dtype: str
) -> None:
    """On the device too, strength 0 is the stock pipeline pixel for pixel."""
    engine = engine_of(model_directories[family], dtype)
    stock = engine.pipeline(
        prompt=["a cat", "a cat"],
        width=PLAN.width_px,
        height=PLAN.height_px,
        num_inference_steps=PLAN.steps,
        guidance_scale=PLAN.guidance_scale,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in (1, 2)],
    ).images
    samples = made(engine, 0.0, MemoryBank())
    assert [sample.image.tobytes() for sample in samples] == [image.tobytes() for image in stock]


@pytest.mark.parametrize(("family", "dtype"), MODELS)
def test_guidance_parts_from_a_memory_on_the_host(
    model_directories: dict[str, Path], family: str, dtype: str
) -> None:
    """A memory on the host pushes images on the device: they are finite, and less similar to it than without."""
    engine, bank = engine_of(model_directories[family], dtype), MemoryBank()
    stock = made(engine, 0.0, bank)
    known = torch.stack([sample.feature for sample in stock])
    bank.append(known, engine.embed_prompts(["a cat"]).expand(2, -1))
    pushed = made(engine, 1.0, bank)
    features = torch.stack([sample.feature for sample in pushed])
    assert bool(torch.isfinite(features).all())
    assert all(sample.push > 0 and sample.num_neighbours == 2 for sample in pushed)
    assert float((features * known).sum(1).mean()) < 1 - 1e-4
