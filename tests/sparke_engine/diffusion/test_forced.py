"""Forced runs: every pipeline denoises to the latents that it is given, and tells how it would have restored them."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, SampleGroup
from sparke_engine.diffusion.forced import Forced, KeptRuns, method_of, restoration_errors
from sparke_engine.diffusion.pipelines import load_engine
from sparke_engine.errors import InvalidArgument

PLAN = DenoisingPlan(32, 32, 5, 1.0)
CASES = [
    *(
        ("sd", scheduler)
        for scheduler in (
            "PNDMScheduler",
            "EulerAncestralDiscreteScheduler",
            "DPMSolverMultistepScheduler",
            "HeunDiscreteScheduler",
        )
    ),
    *((family, None) for family in ("sdxl", "sd3", "flux", "pixart", "sana")),
]


def load(directory: Path, scheduler: str | None = None) -> PipelineEngine:
    """A tiny engine."""
    engine = load_engine(str(directory), scheduler=scheduler)
    assert isinstance(engine, PipelineEngine)
    return engine


def group(*seeds: int) -> SampleGroup:
    """Images of a cat, without guidance of ours."""
    return SampleGroup("a cat", "", seeds, 0.0, None)


def silent(done: int, num_steps: int) -> None:
    """An `on_step` that does nothing."""


@pytest.mark.parametrize(("family", "scheduler"), CASES)
def test_the_run_ends_at_what_is_given(
    model_directories: dict[str, Path], family: str, scheduler: str | None
):
    """On all families, and on stochastic, multistep and two-call schedulers: the target, and an error for each step."""
    engine = load(model_directories[family], scheduler)
    kept = KeptRuns(engine.method)
    with method_of(engine, kept):
        engine.generate([group(1, 2)], PLAN, silent)
    shape = kept.last_run.latents.shape
    target = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    forced = Forced(target)
    with method_of(engine, forced):
        engine.generate([group(1, 2)], PLAN, silent)
    # fp32 over five steps, whose latents are up to σ̃ = 14 times as large on the way; and five deviations of the noise
    # that stock DDIM and PNDM leave at their last timestep
    left = float(1 - getattr(engine.pipeline.scheduler, "final_alpha_cumprod", torch.tensor(1.0))) ** 0.5
    ended = forced.latest.runs[-1].latents.cpu()
    torch.testing.assert_close(ended, target, atol=1e-3 + 5 * left, rtol=0)
    errors = restoration_errors(engine, target, ["a cat", "a dog"], PLAN, first_seed=5)
    assert errors.shape[0] == 2
    assert errors.shape[1] >= PLAN.steps - 1
    assert bool((errors > 0).all())


@torch.no_grad()
def test_errors_are_those_of_the_denoiser_on_noised_latents(model_directories: dict[str, Path]):
    """Against x̂0 computed by hand: noise the target to each level of DDIM, ask the network, compare."""
    engine = load(model_directories["sd"])
    pipe = engine.pipeline
    target = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    found = restoration_errors(engine, target, ["a cat"], PLAN, first_seed=5)[0]
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(5))
    embeds, _ = pipe.encode_prompt("a cat", "cpu", 1, do_classifier_free_guidance=False)
    signal_squared = pipe.scheduler.alphas_cumprod
    noise, expected = None, []
    for timestep in pipe.scheduler.timesteps:
        signal, sigma = signal_squared[timestep].sqrt(), (1 - signal_squared[timestep]).sqrt()
        noise = (start - signal * target) / sigma if noise is None else noise
        noised = signal * target + sigma * noise
        output = pipe.unet(noised, timestep, encoder_hidden_states=embeds).sample
        clean = (noised - sigma * output) / signal
        expected.append(float((clean - target).square().mean()))
    assert len(expected) == PLAN.steps
    # the run reaches each level through the steps before it, by hand it is made at once: fp32 both
    assert found.tolist() == pytest.approx(expected, rel=1e-3)


def test_the_method_comes_back_whatever_happens(model_directories: dict[str, Path]):
    """After a run and after an error."""
    engine = load(model_directories["sd"])
    before = engine.method
    with pytest.raises(RuntimeError):
        restoration_errors(engine, torch.zeros(1, 4, 3, 3), ["a cat"], PLAN, first_seed=5)
    assert engine.method is before


def test_only_the_latest_run_is_kept():
    """Entries and latents of the runs before it are free, whatever the number of runs."""
    for method in (Forced(torch.zeros(1, 4, 8, 8)), KeptRuns(Forced(torch.zeros(1, 4, 8, 8)))):
        first = weakref.ref(method.guide([]))
        gc.collect()
        assert first() is method.latest
        method.guide([])
        gc.collect()
        assert first() is None


def test_what_has_not_run_has_no_run():
    """An error of ours, not one of a list's index."""
    with pytest.raises(InvalidArgument, match="no run"):
        _ = KeptRuns(Forced(torch.zeros(1, 4, 8, 8))).last_run
