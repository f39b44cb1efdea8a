"""CADS: its schedule, its formula, its hook."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparke_engine.baselines import Cads
from sparke_engine.errors import UnsupportedPipeline


class Denoiser(nn.Module):
    """Keeps the conditioning that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Tensor] = []

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor) -> Tensor:
        """The sample."""
        del timestep
        self.read.append(encoder_hidden_states)
        return sample


class Blind(nn.Module):
    """A denoiser that reads no conditioning."""

    def forward(self, sample: Tensor, timestep: Any) -> Tensor:
        """The sample."""
        del timestep
        return sample


def pipeline(denoiser: nn.Module, part: str = "unet") -> Any:
    """What the hook needs of a pipeline."""
    scheduler = SimpleNamespace(
        timesteps=torch.tensor([999, 800, 700, 500]), config=SimpleNamespace(num_train_timesteps=1000)
    )
    return SimpleNamespace(scheduler=scheduler, **{part: denoiser})


def condition_of(n: int, seed: int = 0) -> Tensor:
    """Random conditioning [n,5,6] that is not centred."""
    return 2 + 3 * torch.randn(n, 5, 6, generator=torch.Generator().manual_seed(seed))


def test_the_schedule() -> None:
    """γ is 1 up to tau1, 0 from tau2 and linear between."""
    cads = Cads(tau1=0.6, tau2=0.9)
    times = [0.0, 0.6, 0.7, 0.75, 0.9, 1.0]
    assert [cads.gamma(time) for time in times] == pytest.approx([1, 1, 2 / 3, 0.5, 0, 0])


@pytest.mark.parametrize("mixing", [0.0, 0.4, 1.0])
def test_the_formula(mixing: float) -> None:
    """Image by image: noise, rescale to the old mean and deviation, mix."""
    cads = Cads(noise_scale=0.3, mixing=mixing)
    condition, noise = condition_of(3).double(), condition_of(3, 1).double()
    annealed = cads.anneal(condition, noise, 0.25)
    for row in range(3):
        noised = 0.5 * condition[row] + 0.3 * 0.75**0.5 * noise[row]
        rescaled = (noised - noised.mean()) / noised.std() * condition[row].std() + condition[row].mean()
        torch.testing.assert_close(annealed[row], mixing * rescaled + (1 - mixing) * noised)


def test_constant_conditioning_is_not_rescaled() -> None:
    """Where what is noised is constant there is no scale to restore, and no division by zero."""
    annealed = Cads(noise_scale=0.5).anneal(torch.ones(2, 3, 4), torch.ones(2, 3, 4), 0.0)
    torch.testing.assert_close(annealed, torch.full((2, 3, 4), 0.5))


@pytest.mark.parametrize("part", ["unet", "transformer"])
@pytest.mark.parametrize("by_name", [True, False])
def test_only_the_prompted_half_is_noised(part: str, *, by_name: bool) -> None:
    """The first half of a doubled batch stays to the bit; after tau1 all stays; afterwards the hook is gone."""
    denoiser, condition = Denoiser(), condition_of(4)
    with Cads().around(pipeline(denoiser, part), [7, 8]):
        for time in (999, 500):
            timestep = torch.tensor(time)
            if by_name:
                denoiser(condition, timestep=timestep.expand(4), encoder_hidden_states=condition)
            else:
                denoiser(condition, timestep, encoder_hidden_states=condition)
    noised, late = denoiser.read
    assert torch.equal(noised[:2], condition[:2])
    assert not torch.isclose(noised[2:], condition[2:], atol=0.1).all()
    torch.testing.assert_close(noised.mean((1, 2)), condition.mean((1, 2)))
    assert late is condition
    assert not denoiser._forward_pre_hooks


def test_noise_is_an_images_own() -> None:
    """An image's conditioning depends on its seed and its prompt: not on its place or its batch-mates."""
    condition = condition_of(3)
    rows = {}
    for seeds, order in (((7, 8, 9), (0, 1, 2)), ((9, 7), (2, 0)), ((7,), (0,))):
        denoiser = Denoiser()
        with Cads().around(pipeline(denoiser), seeds):
            given = condition[list(order)]
            denoiser(given, torch.tensor(999), encoder_hidden_states=given)
            denoiser(given, torch.tensor(800), encoder_hidden_states=given)
        for place, seed in enumerate(seeds):
            rows.setdefault(seed, set()).add(tuple(denoiser.read[1][place].flatten().tolist()))
    assert [len(rows[seed]) for seed in (7, 8, 9)] == [1, 1, 1]
    assert rows[7] != rows[9]


def test_noise_is_not_that_of_the_latents() -> None:
    """The noise of a seed is another than the one that a pipeline starts this seed's latents from."""
    denoiser, condition = Denoiser(), condition_of(1)
    with Cads(noise_scale=1.0, mixing=0.0).around(pipeline(denoiser), [7]):
        denoiser(condition, torch.tensor(999), encoder_hidden_states=condition)
    start = torch.randn(5, 6, generator=torch.Generator().manual_seed(7))
    correlation = torch.corrcoef(torch.stack([denoiser.read[0].flatten(), start.flatten()]))[0, 1]
    assert abs(correlation) < 0.5


def test_half_precision_keeps_its_dtype() -> None:
    """Conditioning in bfloat16 is noised in fp32 and given back in bfloat16."""
    denoiser, condition = Denoiser(), condition_of(2).bfloat16()
    with Cads().around(pipeline(denoiser), [7, 8]):
        denoiser(condition, torch.tensor(999), encoder_hidden_states=condition)
    assert denoiser.read[0].dtype == torch.bfloat16


def test_scale_zero_is_off() -> None:
    """At noise scale 0 there is no hook at all."""
    denoiser = Denoiser()
    with Cads(noise_scale=0.0).around(pipeline(denoiser), [7]):
        assert not denoiser._forward_pre_hooks


def test_what_cannot_be_noised_is_refused() -> None:
    """A denoiser without the argument, a call without the keyword, another batch size, another clock: UnsupportedPipeline."""
    with (
        pytest.raises(UnsupportedPipeline, match="encoder_hidden_states"),
        Cads().around(pipeline(Blind()), [7]),
    ):
        pass
    with pytest.raises(UnsupportedPipeline), Cads().around(SimpleNamespace(), [7]):
        pass
    denoiser, one = Denoiser(), condition_of(1)
    with Cads().around(pipeline(denoiser), [7, 8]):
        with pytest.raises(UnsupportedPipeline, match="1 rows"):
            denoiser(one, torch.tensor(999), encoder_hidden_states=one)
        with pytest.raises(UnsupportedPipeline, match="no such keyword"):
            denoiser(one, torch.tensor(999), one)
        with pytest.raises(UnsupportedPipeline, match="timesteps"):
            denoiser(one, torch.tensor(0.999), encoder_hidden_states=one)
    assert not denoiser._forward_pre_hooks
    pipe = pipeline(denoiser)
    pipe.do_classifier_free_guidance = True  # its halves come in two calls here, which cannot be told apart
    with Cads().around(pipe, [7]), pytest.raises(UnsupportedPipeline, match="2 rows"):
        denoiser(one, torch.tensor(999), encoder_hidden_states=one)
