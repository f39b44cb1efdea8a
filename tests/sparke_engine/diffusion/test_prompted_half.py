"""The prediction under the prompt alone: read off the denoiser's doubled batch, and what the push is derived from."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from sparke_engine.diffusion.guide import GroupGuide, GuidedGroup
from sparke_engine.diffusion.schedulers import adapter_for
from sparke_engine.diffusion.seam import Move, Step, guided_steps
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
        self.steps: list[tuple[Tensor, Tensor]] = []

    def before(self, step: Step) -> list[Move]:
        """Read both predictions."""
        self.steps.append((step.clean, step.prompted))
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
    clean, prompted = watcher.steps[0]
    assert torch.equal(clean, prediction.clean(latents, combined))
    assert torch.equal(prompted, prediction.clean(latents, output[2:]))
    assert not torch.equal(clean, prompted)
    assert not denoiser._forward_hooks


def test_without_doubling_the_prediction_is_the_only_one() -> None:
    """Where the denoiser's batch is not doubled, or where it did not run, both predictions are one."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(2)
    pipe, watcher = SimpleNamespace(scheduler=scheduler, unet=Denoiser(as_tuple=True)), Watcher()
    latents = torch.ones(2, 4, 4, 4)
    with guided_steps(pipe, watcher):
        (output,) = pipe.unet(latents)
        scheduler.step(output, scheduler.timesteps[0], latents)
        scheduler.step(output, scheduler.timesteps[1], latents)
    assert all(clean is prompted for clean, prompted in watcher.steps)


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


def test_guidance_is_relaxed_in_a_window_of_its_own() -> None:
    """After the window of the push, moves still give up guidance; after the relax window there are none."""
    preset = replace(PRESET, window=0.25, relax=0.8, relax_window=0.75)
    generator = torch.Generator().manual_seed(1)
    combined, prompted = (torch.randn(3, 4, 4, 4, generator=generator) for _ in range(2))

    def delta(index: int, *, keeps_guidance: bool = False) -> Tensor:
        guide = GroupGuide([GuidedGroup(slice(0, 3), preset, 1.0, None, keeps_guidance)])
        moves = guide.before(Step(index, 4, lambda: combined, lambda: prompted))
        return moves[0].delta if moves else torch.zeros_like(combined)

    extrapolated = combined - prompted
    share = (delta(1) / extrapolated).flatten(1)
    assert bool(((share > 0.5) & (share < 0.8)).all())
    torch.testing.assert_close(share, share[:, :1].expand_as(share), rtol=1e-3, atol=0)
    assert delta(0).norm() > 0
    assert not delta(3).any()
    assert not delta(1, keeps_guidance=True).any()
    assert delta(0, keeps_guidance=True).any()
