"""The prediction under the prompt alone: read off the denoiser's doubled batch, and what the push is derived from."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from sparke_engine.diffusion.guide import GroupGuide, GuidedGroup
from sparke_engine.diffusion.moves import Move
from sparke_engine.diffusion.schedulers import adapter_for
from sparke_engine.diffusion.seam import guided_steps
from sparke_engine.diffusion.steps import Step
from sparke_engine.guidance.presets import DiversityPreset

PRESET = DiversityPreset(grid=(2, 2), eta=0.5, window=0.5, latent_bandwidth=1.5, max_push=10)


class Denoiser(nn.Module):
    """Answers with a constant of its own for each row of the batch, as a tuple or as an object."""

    def __init__(self, *, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple

    def forward(self, latents: Tensor) -> Any:
        """Row i is filled with i."""
        rows = torch.arange(len(latents), dtype=latents.dtype)[:, None, None, None]
        output = rows.expand_as(latents).clone()
        return (output,) if self.as_tuple else SimpleNamespace(sample=output)


class Watcher:
    """A guide that keeps what each step predicts, and pushes nothing."""

    def __init__(self) -> None:
        self.steps: list[tuple[Tensor, Tensor, list[float]]] = []

    def displace(self, step: Step) -> list[Move]:
        """None."""
        del step
        return []

    def before(self, step: Step) -> list[Move]:
        """Read both predictions and the scales."""
        self.steps.append((step.clean, step.prompted, step.guidance_scale.tolist()))
        return []

    def after(self, _step: Step, _latents: Tensor) -> list[Move]:
        """Nothing."""
        return []

    def finish(self, _latents: Tensor, _num_steps: int) -> None:
        """Nothing."""


@pytest.mark.parametrize("as_tuple", [True, False])
@pytest.mark.parametrize("part", ["unet", "transformer"])
def test_the_prompted_half_is_the_second(part: str, *, as_tuple: bool) -> None:
    """In a doubled batch x̂0 under the prompt comes from the second half; afterwards the denoiser has no hook."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(2)
    pipe = SimpleNamespace(scheduler=scheduler, **{part: Denoiser(as_tuple=as_tuple)})
    denoiser, watcher = getattr(pipe, part), Watcher()
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    timestep = scheduler.timesteps[0]
    with guided_steps(pipe, watcher):
        result = denoiser(torch.cat([latents, latents]))
        output = result[0] if as_tuple else result.sample
        combined = output[:2] + 7.5 * (output[2:] - output[:2])
        scheduler.step(combined, timestep, latents)
    prediction = adapter_for(scheduler).prediction(0, timestep)
    clean, prompted, scale = watcher.steps[0]
    assert scale == [7.5, 7.5]
    assert torch.equal(clean, prediction.clean(latents, combined))
    assert torch.equal(prompted, prediction.clean(latents, output[2:]))
    assert not torch.equal(clean, prompted)
    assert not denoiser._forward_hooks


def test_without_doubling_the_prediction_is_the_only_one() -> None:
    """Where the denoiser's batch is not doubled, or where it did not run, both predictions are one, and the scale is 1."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(2)
    denoiser, watcher = Denoiser(as_tuple=True), Watcher()
    pipe = SimpleNamespace(scheduler=scheduler, unet=denoiser)
    latents = torch.ones(2, 4, 4, 4)
    with guided_steps(pipe, watcher):
        (output,) = pipe.unet(latents)
        scheduler.step(output, scheduler.timesteps[0], latents)
        scheduler.step(output, scheduler.timesteps[1], latents)
    assert [(clean is prompted, scale) for clean, prompted, scale in watcher.steps] == [
        (True, [1.0, 1.0])
    ] * 2


def test_what_all_images_share_under_the_prompt_is_not_pushed() -> None:
    """Images that the prompt makes alike in a place are not parted there, whatever the combined prediction does."""
    generator = torch.Generator().manual_seed(1)
    combined = torch.randn(3, 4, 4, 4, generator=generator)
    prompted = combined.clone()
    prompted[:, :, :, :2] = prompted[:1, :, :, :2]
    step = Step(0, 4, lambda: combined, lambda: prompted)
    group = GuidedGroup(slice(0, 3), PRESET, 1.0, None)
    (shared,) = GroupGuide([group]).before(step)
    (plain,) = GroupGuide([group]).before(Step(0, 4, lambda: combined))

    def parted(delta: Tensor) -> Tensor:
        left = delta[:, :, :, :2]
        return (left - left.mean(0)).norm() / delta.norm()

    assert parted(shared.delta) < 0.5 * parted(plain.delta)


SCALE = 6.0


def halves() -> tuple[Tensor, Tensor]:
    """Clean latents at guidance scale 6 and under the prompt alone, of three images."""
    generator = torch.Generator().manual_seed(1)
    unprompted, prompted = (torch.randn(3, 4, 4, 4, generator=generator) for _ in range(2))
    return unprompted + SCALE * (prompted - unprompted), prompted


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_guidance_is_relaxed_in_every_step(strength: float) -> None:
    """After the push's window, moves relax the guidance scale by strength, up to the last step."""
    preset = replace(PRESET, window=0.25, relax=0.8, kappa=1e-6)
    combined, prompted = halves()

    def moves(index: int, *, keeps_guidance: bool = False) -> list[Move]:
        guide = GroupGuide([GuidedGroup(slice(0, 3), preset, strength, None, keeps_guidance)])
        return guide.before(Step(index, 4, lambda: combined, lambda: prompted, guidance_scale=SCALE))

    if strength == 0:
        assert [moves(index) for index in range(4)] == [[]] * 4
        return
    share = (SCALE - SCALE ** (1 - 0.8 * strength)) / (SCALE - 1)
    for index in (1, 2, 3):
        torch.testing.assert_close(moves(index)[0].delta, share * (combined - prompted), rtol=1e-3, atol=1e-5)
        assert moves(index, keeps_guidance=True) == []
    assert moves(0, keeps_guidance=True)[0].delta.any()


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_there_is_nothing_to_relax_up_to_scale_1(scale: float) -> None:
    """Without extrapolation nothing moves after the window of the push, with halves or without."""
    preset = replace(PRESET, window=0.25, relax=1.0)
    combined, prompted = halves()
    for predict_prompted in (None, lambda: prompted):
        guide = GroupGuide([GuidedGroup(slice(0, 3), preset, 1.0, None)])
        steps = [Step(i, 4, lambda: combined, predict_prompted, guidance_scale=scale) for i in range(4)]
        moved = [any(move.delta.any() for move in guide.before(step)) for step in steps]
        assert moved == [True, False, False, False]


def test_the_bound_is_on_the_push_proper() -> None:
    """Where the bound is spent, guidance is still relaxed, and the total push is the bound."""
    preset = replace(PRESET, window=1.0, relax=1.0, max_push=1e-3)
    combined, prompted = halves()
    guide = GroupGuide([GuidedGroup(slice(0, 3), preset, 1.0, None)])
    deltas = [
        guide.before(Step(i, 4, lambda: combined, lambda: prompted, guidance_scale=SCALE))[0].delta
        for i in range(4)
    ]
    guide.finish(combined, 4)
    torch.testing.assert_close(guide.runs[0].pushes, torch.full((3,), 1e-3))
    assert all(delta.norm() > 0.5 * (combined - prompted).norm() for delta in deltas)
