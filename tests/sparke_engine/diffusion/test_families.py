"""Every pipeline family through the one seam: stock at strength 0, pushed from memory, exact in canonical space."""

import runpy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparke_engine import MemoryBank, guided
from sparke_engine.diffusion.families import FAMILIES, embed_prompt, supported_pipelines
from sparke_engine.diffusion.guide import BatchGuide
from sparke_engine.diffusion.moves import Move
from sparke_engine.diffusion.seam import guided_steps
from sparke_engine.diffusion.steps import Step
from sparke_engine.guidance.presets import PRESETS, DiversityPreset

CASES = runpy.run_path(str(Path(__file__).parents[2] / "tiny_families.py"))["CASES"]
RUNS = [
    pytest.param(case, scheduler, id=f"{case.label}-{scheduler.removesuffix('Scheduler')}".replace(" ", "_"))
    for case in CASES
    for scheduler in case.schedulers
]
FIRST = [pytest.param(case, case.schedulers[0], id=case.label.replace(" ", "_")) for case in CASES]
# A wide kernel lets the latents of random networks, which are far apart, feel each other.
PRESET = DiversityPreset(grid=(4, 4), eta=0.8, window=0.5, latent_bandwidth=2.0, max_push=10)
# Kandinsky's combined pipeline hands its decoder an argument that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`callback_steps` is deprecated:FutureWarning")


def pixels(result: Any) -> Tensor:
    """What a pipeline made, one row an image or a video."""
    made = result.frames if hasattr(result, "frames") else result.images
    if isinstance(made, list):
        return torch.stack(
            [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in made]
        )
    return made


def images(pipe: Any, case: Any, seeds: tuple[int, ...] = (1, 2), **more: Any) -> Tensor:
    """The pipeline called as a user calls it, with the global noise that DiT draws."""
    torch.manual_seed(0)
    return pixels(pipe(**case.arguments(seeds, **more)))


@dataclass
class Watcher(BatchGuide):
    """Moves nothing, or what it is told in the last step, and keeps what the first step saw."""

    delta: Tensor | None = None
    steps: list[Step] = field(default_factory=list)

    def before(self, step: Step) -> list[Move]:
        """The move, and the step's values while its run lasts."""
        self.steps.append(step)
        _ = step.clean, step.prompted, step.guidance_scale
        if self.delta is None or step.index < step.num_steps - 1:
            return []
        return [Move(slice(0, len(self.delta)), self.delta)]


def watched(pipe: Any, case: Any, delta: Tensor | None = None, **more: Any) -> Watcher:
    """A run under the watcher's eyes."""
    watcher = Watcher([], delta=delta)
    with guided_steps(pipe, watcher):
        images(pipe, case, **more)
    return watcher


@pytest.mark.parametrize(("case", "scheduler"), RUNS)
def test_a_memory_pushes(case: Any, scheduler: str) -> None:
    """Strength 0 is the stock output to the bit; at strength 1 the same seeds part from the memory, which grows."""
    pipe, bank = case.load(scheduler), MemoryBank()
    stock = images(pipe, case)
    for strength in (0.0, 1.0):
        with guided(pipe, bank, case.prompt, strength=strength, preset=PRESET) as guide:
            made = images(pipe, case)
        (run,) = guide.runs
        assert torch.equal(made, stock) == (strength == 0)
        assert bool((run.pushes > 0).all()) == (strength > 0)
    assert len(bank) == 4
    alike = (bank.features[:2] * bank.features[2:]).sum(1)
    assert (alike < 0.999).all()
    again = images(pipe, case)
    assert torch.equal(again, stock)


@pytest.mark.parametrize(("case", "scheduler"), RUNS)
def test_a_move_of_the_clean_latents_is_exact(case: Any, scheduler: str) -> None:
    """In the last step, after which no noise is left, the final canonical latents are those without the move less δ.

    fp32 rounds x̂0 where it is made from a noisy sample; the tolerance is relative to the latents.
    """
    pipe = case.load(scheduler)
    (stock,) = watched(pipe, case).runs
    generator = torch.Generator().manual_seed(3)
    delta = 0.3 * torch.randn(stock.latents[:1].shape, generator=generator) * stock.latents.std()
    (moved,) = watched(pipe, case, delta).runs
    size = float(stock.latents.abs().max())
    torch.testing.assert_close(moved.latents[:1], stock.latents[:1] - delta, rtol=0, atol=3e-4 * size)
    assert torch.equal(moved.latents[1:], stock.latents[1:])


@pytest.mark.parametrize(("case", "scheduler"), [run for run in RUNS if run.values[0].scale_name is not None])
def test_the_prompted_half_is_what_a_run_without_guidance_predicts(case: Any, scheduler: str) -> None:
    """In the first step x̂0 under the prompt is that of the same call at guidance scale 1, and the scale is found.

    Batches of another size round otherwise; the scale is found to what rounding leaves of the parts' difference.
    """
    pipe = case.load(scheduler)
    with_guidance, without = watched(pipe, case), watched(pipe, case, scale=1.0)
    first, plain = with_guidance.steps[0], without.steps[0]
    assert first.extrapolates
    assert not plain.extrapolates
    size = float(plain.clean.abs().max())
    torch.testing.assert_close(first.prompted, plain.clean, rtol=0, atol=1e-4 * size)
    assert float((first.clean - first.prompted).abs().max()) > 1e-3 * size
    torch.testing.assert_close(first.guidance_scale, torch.full((2,), case.scale), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("case", "scheduler"), [run for run in FIRST if run.values[0].scale_name is not None]
)
def test_guidance_is_relaxed(case: Any, scheduler: str) -> None:
    """Fully relaxed in every step, guided images are those of guidance scale 1, whatever the pipeline's way of guiding.

    Two images of one call are near each other under a kernel so wide, and the gate is open. That no negative prompt is
    given is seen, but for Kandinsky, which shows no prompts.
    """
    relaxing = replace(PRESET, eta=1e-9, relax=1.0, kappa=1e-9, latent_bandwidth=100.0)
    pipe = case.load(scheduler)
    (plain,) = watched(pipe, case, scale=1.0).runs
    keeps = False if "Kandinsky" in case.name else None
    with guided(
        pipe, MemoryBank(), case.prompt, strength=1.0, preset=relaxing, keeps_guidance=keeps
    ) as guide:
        images(pipe, case)
    size = float(plain.latents.abs().max())
    torch.testing.assert_close(guide.runs[0].latents, plain.latents, rtol=0, atol=2e-2 * size)


def case_of(name: str) -> Any:
    """The first case of a pipeline class."""
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize(
    "name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline"]
)
def test_rescaled_guidance_is_not_relaxed(name: str) -> None:
    """Under `guidance_rescale` x̂0 under the prompt is known, and no scale is claimed, so that nothing is relaxed."""
    case = case_of(name)
    rescaled = replace(case, extra={**case.extra, "guidance_rescale": 0.7})
    pipe = case.load()
    first = watched(pipe, rescaled).steps[0]
    plain = watched(pipe, case, scale=1.0).steps[0]
    size = float(plain.clean.abs().max())
    torch.testing.assert_close(first.prompted, plain.clean, rtol=0, atol=1e-4 * size)
    assert first.guidance_scale.tolist() == [1.0, 1.0]


def test_skipped_layers_are_not_relaxed() -> None:
    """Skip-layer guidance of SD3 predicts a third time: the prompt's is still known, and in its steps s is 1."""
    case = case_of("StableDiffusion3Pipeline")
    skipping = replace(
        case,
        extra={
            "skip_guidance_layers": [0],
            "skip_layer_guidance_start": 0.2,
            "skip_layer_guidance_stop": 0.6,
        },
    )
    pipe = case.load()
    steps = watched(pipe, skipping).steps
    scales = torch.stack([step.guidance_scale for step in steps])
    torch.testing.assert_close(scales[:, 0], torch.tensor([5.0, 1.0, 1.0, 5.0]), rtol=1e-3, atol=0)
    plain = watched(pipe, case).steps
    assert torch.equal(steps[1].prompted, plain[1].prompted)


def test_a_guidance_scale_that_changes_is_followed() -> None:
    """CogVideoX's dynamic guidance has another scale in every step, which is found in each."""
    case = case_of("CogVideoXPipeline")
    pipe, asked = case.load(), replace(case, extra={**case.extra, "use_dynamic_cfg": True})
    told = []

    def tell(pipe: Any, _index: int, _timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        told.append(pipe.guidance_scale)
        return given

    steps = watched(pipe, replace(asked, extra={**asked.extra, "callback_on_step_end": tell})).steps
    for step, scale in zip(steps, told, strict=True):
        torch.testing.assert_close(step.guidance_scale, torch.full((2,), max(scale, 1.0)), rtol=1e-2, atol=0)
    assert len({round(scale, 3) for scale in told}) > 2


@pytest.mark.parametrize(("case", "scheduler"), FIRST)
def test_half_precision(case: Any, scheduler: str) -> None:
    """In bfloat16 strength 0 is stock to the bit, strength 1 is pushed, and the latents are finite."""
    pipe = case.load(scheduler).to(dtype=torch.bfloat16)
    bank, stock = MemoryBank(), images(pipe, case, steps=2)
    for strength in (0.0, 1.0):
        with guided(pipe, bank, case.prompt, strength=strength, preset=PRESET) as guide:
            made = images(pipe, case, steps=2)
        assert torch.equal(made, stock) == (strength == 0)
        assert torch.isfinite(guide.runs[0].latents).all()
    assert (guide.runs[0].pushes > 0).all()


@pytest.mark.parametrize(("case", "scheduler"), [run for run in FIRST if run.values[0].negative])
def test_negative_prompts(case: Any, scheduler: str) -> None:
    """With a negative prompt strength 0 is stock, the images are still pushed, and guidance is kept though not asked to."""
    pipe, bank = case.load(scheduler), MemoryBank()
    negative = replace(case, extra={**case.extra, "negative_prompt": ["a dog", "a dog"]})
    stock = images(pipe, negative)
    assert not torch.equal(stock, images(pipe, case))
    for strength in (0.0, 1.0):
        with guided(pipe, bank, case.prompt, strength=strength, preset=PRESET) as guide:
            made = images(pipe, negative)
        assert torch.equal(made, stock) == (strength == 0)
        assert guide.groups[0].keeps_guidance
    assert (guide.runs[0].pushes > 0).all()


@pytest.mark.parametrize(("case", "scheduler"), FIRST)
def test_prompts_have_unit_embeddings(case: Any, scheduler: str) -> None:
    """Equal prompts have equal embeddings of unit norm, others have others; an embedding of one's own is only scaled."""
    pipe = case.load(scheduler)
    embedding = embed_prompt(pipe, case.prompt)
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(), torch.tensor(1.0))
    assert torch.equal(embedding, embed_prompt(pipe, case.prompt))
    own = torch.arange(1.0, 5.0)
    torch.testing.assert_close(embed_prompt(pipe, own), own / own.norm())
    other = {"str": "zebras", "int": 0, "Tensor": -EMBEDDING}[type(case.prompt).__name__]
    assert float(embedding @ embed_prompt(pipe, other)) < 0.9999


EMBEDDING = torch.ones(16)


def test_every_family_is_run() -> None:
    """No pipeline class is claimed that is not run here, and each has a preset."""
    assert {case.name for case in CASES} == set(supported_pipelines())
    assert all(family.preset in PRESETS for family in FAMILIES.values())


def test_the_table_is_written_from_these_runs() -> None:
    """docs/pipelines.md is what `make docs` writes now."""
    root = Path(__file__).parents[3]
    written = runpy.run_path(str(root / "docs" / "write_pipelines.py"))["render"]()
    assert (root / "docs" / "pipelines.md").read_text(encoding="utf-8") == written
