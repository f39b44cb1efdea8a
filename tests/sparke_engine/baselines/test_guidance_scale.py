"""The limited interval of classifier-free guidance."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparke_engine.baselines import LimitedInterval, Unguided
from sparke_engine.baselines.rival import Seen
from sparke_engine.diffusion.schedulers import NoiseLevel

Latents = Callable[..., Tensor]
See = Callable[..., Seen]


@pytest.mark.parametrize(("ratio", "guided"), [(0.28, False), (0.29, True), (5.42, True), (5.43, False)])
def test_outside_the_interval_the_prompt_speaks_alone(
    latents_of: Latents, seen_of: See, ratio: float, *, guided: bool
) -> None:
    """At noise ratios in (low, high] nothing moves; elsewhere x̂0 − δ is the prediction under the prompt."""
    clean, prompted = latents_of(0), latents_of(1)
    seen = seen_of(clean, prompted=prompted, noise=NoiseLevel(1.0, ratio))
    delta = LimitedInterval(0.28, 5.42).push(seen)
    if guided:
        assert delta is None
    else:
        torch.testing.assert_close(clean - delta, prompted)


def test_without_guidance_nothing_changes(latents_of: Latents, seen_of: See) -> None:
    """Where the model's output has no parts, or was made of equal ones, there is nothing to leave out."""
    clean = latents_of(0)
    assert LimitedInterval(0, 0).push(seen_of(clean)) is None
    assert not LimitedInterval(0, 0).push(seen_of(clean, prompted=clean, scale=1.0)).any()


def test_unguided_is_stock(latents_of: Latents, seen_of: See) -> None:
    """The stock pipeline as a method pushes nothing."""
    assert Unguided().push(seen_of(latents_of(0))) is None
