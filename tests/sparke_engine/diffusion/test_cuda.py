"""Half-precision models on a CUDA device: the stock pipeline's bits at strength 0, fp32 guidance beside them."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from torch import Tensor, nn

from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, Sample, SampleGroup
from sparke_engine.diffusion.guide import FinishedRun, GroupGuide, GuidedGroup
from sparke_engine.diffusion.loras import LoraFile, LoraScale
from sparke_engine.diffusion.pipelines import load_engine
from sparke_engine.diffusion.recording import StepRecorder
from sparke_engine.diffusion.seam import guided_steps
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries
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


class Halves(nn.Module):
    """A denoiser in half precision whose doubled batches differ."""

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        """Without the prompt and under it."""
        return (torch.cat([torch.tanh(latents), torch.tanh(latents.flip(-1)) + 0.1]),)


def again(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """In place of a graph: the work kernel by kernel."""
    return work


@contextmanager
def never_waiting() -> Iterator[None]:
    """Within the block, whatever makes the host wait for the device is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it does not yet detect all that waits
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def run_of(recorder: StepRecorder, memories: tuple[int, int], strengths: tuple[float, float]) -> FinishedRun:
    """Two groups of two and one image, by memories of so many entries, through 20 steps of Euler's."""
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(20, device="cuda")
    groups = []
    for rows, number, strength in zip((slice(0, 2), slice(2, 3)), memories, strengths, strict=True):
        drawn = torch.randn(number, 64, device="cuda", generator=torch.Generator("cuda").manual_seed(number))
        features = (drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)).half()
        groups.append(GuidedGroup(rows, PRESET, strength, Entries(features, torch.ones(number))))
    pipe, guide = SimpleNamespace(scheduler=scheduler, unet=Halves()), GroupGuide(groups)
    generator = torch.Generator("cuda").manual_seed(3)
    latents = (
        torch.randn(3, 4, 16, 16, device="cuda", generator=generator).half() * scheduler.init_noise_sigma
    )
    with guided_steps(pipe, guide, recorder=recorder), torch.no_grad():
        for index, timestep in enumerate(scheduler.timesteps):
            without, under = pipe.unet(scheduler.scale_model_input(latents, timestep))[0].chunk(2)
            output = without + 5.0 * (under - without)
            if index in {4, 12}:  # what happens once in a run has happened, and the end has not
                with never_waiting():
                    latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
            else:
                latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
    return guide.runs[0]


def test_a_replayed_graph_has_the_bits_of_its_kernels() -> None:
    """Guidance from graphs is guidance kernel by kernel, to the bit, also when graphs are recorded anew; no step waits."""
    graphs = StepRecorder()
    for memories in ((300, 40), (300, 40), (5, 7), (3000, 700), (17000, 1)):
        found, expected = (
            run_of(recorder, memories, (1.0, 0.5)) for recorder in (graphs, StepRecorder(again))
        )
        assert torch.equal(found.latents, expected.latents)
        assert torch.equal(found.pushes, expected.pushes)
        assert bool((found.pushes > 0).all())


def test_an_image_does_not_depend_on_other_groups_on_the_device() -> None:
    """Another group's memory and strength leave an image to the bit, also where they change when graphs are recorded."""
    graphs = StepRecorder()
    first, other, unpushed = (
        run_of(graphs, memories, strengths)
        for memories, strengths in (((300, 40), (1.0, 0.5)), ((300, 7), (1.0, 1.0)), ((300, 7), (1.0, 0.0)))
    )
    assert torch.equal(first.latents[:2], other.latents[:2])
    assert torch.equal(first.latents[:2], unpushed.latents[:2])
    assert not torch.equal(first.latents[2:], other.latents[2:])


def test_graphs_hold_no_more_memory_from_run_to_run() -> None:
    """What is recorded in one run is freed for the next."""
    graphs = StepRecorder()
    held = []
    for number in range(24):
        run_of(graphs, (1000 + number, 40), (1.0, 0.5))
        held.append(torch.cuda.memory_reserved())
    assert held[-1] <= held[3]


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux"])
def test_loras_are_the_same_on_a_device_with_a_number(
    model_directories: dict[str, Path], save_lora: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    """Weights that went straight to the device and those that came by way of the host take a LoRA alike, and leave no trace."""
    path = save_lora(model_directories[family], tmp_path / "ink.safetensors", seed=0)
    plans = [PLAN, replace(PLAN, loras=(LoraScale("ink", 1.0),)), PLAN]
    found = []
    for device in ("cuda", "cuda:0"):
        engine = load_engine(
            str(model_directories[family]),
            dtype="float32",
            device=device,
            preset=PRESET,
            loras=[LoraFile("ink", path)],
        )
        group = SampleGroup("a cat", "", (1, 2), 0.0, None)
        runs = [engine.generate([group], plan, lambda _done, _all: None)[0] for plan in plans]
        found.append([[sample.image.tobytes() for sample in samples] for samples in runs])
    straight, by_host = found
    assert straight == by_host
    without, with_lora, again = straight
    assert without == again
    assert without != with_lora
