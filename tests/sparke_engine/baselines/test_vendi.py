"""Latent Vendi guidance against autograd of the entropy in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparke_engine.baselines import LatentVendi
from sparke_engine.baselines.rival import Seen
from sparke_engine.core.kernels import CosineKernel, unit
from sparke_engine.core.scores import vendi
from sparke_engine.guidance.features import FeatureMap
from sparke_engine.guidance.push import Entries

Latents = Callable[..., Tensor]
See = Callable[..., Seen]


def entropy(rows: Tensor, weights: Tensor) -> Tensor:
    """H₁ of the weighted Gram matrix, by its eigenvalues."""
    scaled = (weights / weights.sum()).sqrt()[:, None] * unit(rows)
    values = torch.linalg.eigvalsh(scaled @ scaled.mT).clamp_min(0)
    return -torch.xlogy(values, values).sum()


@pytest.mark.parametrize("grid", [(2, 2), None])
def test_a_push_raises_the_score(grid: tuple[int, int] | None, latents_of: Latents, seen_of: See) -> None:
    """δ has the size η‖x̂0‖, and along −δ the Vendi score rises the fastest: by autograd through φ; entries below 0 are absent."""
    clean, feature_map = latents_of(0, 1, torch.float64), FeatureMap(grid)
    known = feature_map.feature(latents_of(7, 5, torch.float64) + clean)
    counts = torch.tensor([1.0, 0.5, 1.0, 2.0, 0.1]).double()
    far = feature_map.feature(latents_of(8, 1, torch.float64))
    entries = Entries(torch.cat([known, far]), torch.cat([counts, -torch.ones(1).double()]))
    delta = LatentVendi(eta=1e-3).push(seen_of(clean, entries, grid=grid))
    assert float(delta.norm()) == pytest.approx(1e-3 * float(clean.norm()))
    moving = clean.clone().requires_grad_()
    value = entropy(
        torch.cat([feature_map.apply(moving), known]), torch.cat([torch.ones(1), counts]).double()
    )
    (gradient,) = torch.autograd.grad(value, moving)
    torch.testing.assert_close(-delta / delta.norm(), gradient / gradient.norm(), rtol=1e-6, atol=1e-9)
    before, after = (
        vendi(torch.cat([feature_map.feature(latents), known]), CosineKernel())
        for latents in (clean, clean - delta)
    )
    assert after > before


def test_only_the_newest_entries_count(latents_of: Latents, seen_of: See) -> None:
    """Above the cap the last entries count, and no other."""
    clean, feature_map = latents_of(0, 2), FeatureMap((2, 2))
    known = feature_map.feature(latents_of(7, 9))
    whole = LatentVendi(max_entries=4).push(seen_of(clean, Entries(known, torch.ones(9))))
    part = LatentVendi().push(seen_of(clean, Entries(known[5:], torch.ones(4))))
    assert torch.equal(whole, part)
    assert not torch.equal(whole, LatentVendi().push(seen_of(clean, Entries(known, torch.ones(9)))))


def test_window_and_interval(latents_of: Latents, seen_of: See) -> None:
    """Of ten steps with a window of 0.45 and an interval of 2 the steps 0, 2 and 4 push, the last half; eta 0 never does."""
    rival = LatentVendi(window=0.45, interval=2)
    sizes = []
    for index in range(10):
        delta = rival.push(seen_of(latents_of(0), index=index))
        sizes.append(0.0 if delta is None else float(delta[0].norm() / latents_of(0)[0].norm()))
    assert sizes == pytest.approx([0.1, 0, 0.1, 0, 0.05, 0, 0, 0, 0, 0], rel=1e-4)
    assert LatentVendi(eta=0.0).push(seen_of(latents_of(0))) is None
