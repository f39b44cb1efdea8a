"""Noise levels against what each scheduler itself makes of clean latents and noise."""

import math
from types import SimpleNamespace

import diffusers
import pytest
import torch
from torch import Tensor

from sparke_engine.diffusion.schedulers import NoiseLevel, adapter_for, noise_level
from sparke_engine.diffusion.seam import guided_steps
from sparke_engine.diffusion.steps import Step

SCHEDULERS = [
    diffusers.DDIMScheduler(clip_sample=False),
    diffusers.PNDMScheduler(skip_prk_steps=True),
    diffusers.EulerDiscreteScheduler(),
    diffusers.EulerAncestralDiscreteScheduler(),
    diffusers.DPMSolverMultistepScheduler(),
    diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    diffusers.UniPCMultistepScheduler(),
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    diffusers.LCMScheduler(),
    diffusers.EDMEulerScheduler(),
]


def noised(scheduler: object, clean: Tensor, noise: Tensor, timestep: Tensor) -> float:
    """What the scheduler makes of one clean number and one noise."""
    if hasattr(scheduler, "scale_noise"):
        return float(scheduler.scale_noise(clean, timestep[None], noise))
    return float(scheduler.add_noise(clean, noise, timestep[None]))


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: type(scheduler).__name__)
def test_the_level_is_what_the_scheduler_adds(scheduler: object) -> None:
    """`signal` and `noise` are the factors with which the scheduler noises clean latents, to fp32's rounding."""
    scheduler.set_timesteps(9)
    one, none = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    for timestep in scheduler.timesteps:
        index = int((scheduler.timesteps == timestep).nonzero()[0])
        level = noise_level(scheduler, index, timestep)
        expected = [noised(scheduler, one, none, timestep), noised(scheduler, none, one, timestep)]
        assert [level.signal, level.noise] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert level.scale == pytest.approx(math.hypot(*expected), rel=1e-4)
        if expected[0] > 0:
            assert level.ratio == pytest.approx(expected[1] / expected[0], rel=1e-3)


def test_inverted_flow_has_its_noise_at_zero() -> None:
    """Under `invert_sigmas` x̂0 = z + t·o, with the same t that is the noise."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(5)
    for position, timestep in enumerate(scheduler.timesteps):
        level = noise_level(scheduler, position, timestep)
        expected = adapter_for(scheduler).prediction(position, timestep).of_output
        assert (level.noise, level.signal) == pytest.approx((expected, 1 - expected))


def test_an_angle_is_a_level() -> None:
    """TrigFlow's latents are cos(s)·x0 + sin(s)·ε."""
    scheduler = diffusers.SCMScheduler()
    scheduler.set_timesteps(2)
    angle = float(scheduler.timesteps[1])
    assert noise_level(scheduler, 1, scheduler.timesteps[1]) == NoiseLevel(math.cos(angle), math.sin(angle))


def test_without_signal_the_ratio_is_infinite() -> None:
    """A schedule that starts from pure noise has an infinite ratio there, and no division by zero."""
    assert NoiseLevel(0.0, 1.0).ratio == math.inf


class Watcher:
    """A guide that keeps each step's noise level."""

    def __init__(self) -> None:
        self.ratios: list[float] = []

    def displace(self, step: Step) -> list[object]:
        """Read the level."""
        self.ratios.append(step.noise.ratio)
        return []

    def before(self, _step: Step) -> list[object]:
        """Nothing."""
        return []

    def after(self, _step: Step, _latents: Tensor) -> list[object]:
        """Nothing."""
        return []

    def finish(self, _latents: Tensor, _num_steps: int) -> None:
        """Nothing."""


def test_a_step_knows_its_noise() -> None:
    """Through the seam, a run's steps have the schedule's noise ratios; a step that nobody told of has none."""
    scheduler, watcher = diffusers.EulerDiscreteScheduler(), Watcher()
    scheduler.set_timesteps(4)
    expected = scheduler.sigmas[:4].tolist()
    sample = torch.ones(1, 1, 2, 2)
    with guided_steps(SimpleNamespace(scheduler=scheduler), watcher):
        for timestep in scheduler.timesteps:
            scheduler.scale_model_input(sample, timestep)
            scheduler.step(torch.zeros_like(sample), timestep, sample)
    assert watcher.ratios == pytest.approx(expected)
    assert Step(0, 1, lambda: sample).noise == NoiseLevel(1.0, 0.0)
