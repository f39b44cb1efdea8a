"""Latent Vendi guidance against autograd and finite differences of the entropy in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparke_engine.baselines import LatentVendi
from sparke_engine.baselines.rival import Seen
from sparke_engine.baselines.vendi import entropy_slope
from sparke_engine.core.kernels import CosineKernel, unit
from sparke_engine.core.scores import vendi
from sparke_engine.guidance.features import FeatureMap
from sparke_engine.guidance.push import Entries

Latents = Callable[..., Tensor]
See = Callable[..., Seen]


def rows_of(seed: int, n: int, d: int) -> Tensor:
    """Random unit rows that share a direction."""
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return unit(rows + 1)


def entropy(rows: Tensor, weights: Tensor) -> Tensor:
    """H₁ of the weighted Gram matrix, by its eigenvalues."""
    scaled = (weights / weights.sum()).sqrt()[:, None] * unit(rows)
    values = torch.linalg.eigvalsh(scaled @ scaled.mT).clamp_min(0)
    return -torch.xlogy(values, values).sum()


@pytest.mark.parametrize("d", [3, 40])
def test_the_slope_is_autograds(d: int) -> None:
    """Through either matrix, 2/(n + Σa) times the slope is autograd's gradient of H₁ by each feature on its sphere."""
    features, entries = rows_of(0, 3, d), rows_of(1, 5, d)
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0, 0.1]).double()
    moving = features.clone().requires_grad_()
    mass = torch.cat([torch.ones(3).double(), weights])
    kept = mass > 0
    (gradient,) = torch.autograd.grad(entropy(torch.cat([moving, entries])[kept], mass[kept]), moving)
    slope = entropy_slope(features, entries, weights)
    torch.testing.assert_close(2 / mass.sum() * slope, gradient, rtol=1e-8, atol=1e-10)
    single = entropy_slope(features.float(), entries.float(), weights.float())
    assert (single.double() - slope).norm() < 1e-4 * slope.norm()


@pytest.mark.parametrize("d", [4, 40])
def test_the_slope_at_repeated_eigenvalues(d: int) -> None:
    """Where eigenvalues repeat, so that derivatives of eigenvectors do not exist, it is still finite differences'."""
    axes = torch.eye(d).double()
    features = unit(axes[:1] + axes[1:2])
    entries = axes[:4]
    weights = torch.ones(4).double()
    slope = entropy_slope(features, entries, weights)[0]
    for direction in rows_of(3, 4, d):
        across = direction - features[0] * (features[0] @ direction)
        step = 1e-5

        def entropy_at(shift: float, across: Tensor = across) -> Tensor:
            return entropy(torch.cat([features + shift * across, entries]), torch.ones(5).double())

        finite = (entropy_at(step) - entropy_at(-step)) / (2 * step)
        torch.testing.assert_close(2 / 5 * slope @ across, finite, rtol=1e-5, atol=1e-8)


def test_no_slope_where_all_coincide() -> None:
    """A feature that coincides with every entry, or is alone, has slope 0; entries of weight ≤ 0 are absent."""
    feature, far = rows_of(0, 1, 6), rows_of(1, 3, 6)
    for entries, weights in (
        (feature.expand(3, 6), torch.ones(3)),
        (far[:0], torch.ones(0)),
        (far, torch.tensor([0.0, -1.0, -3.0])),
    ):
        slope = entropy_slope(feature, entries, weights.double())
        assert slope.abs().max() < 1e-12


@pytest.mark.parametrize("grid", [(2, 2), None])
def test_a_push_raises_the_score(grid: tuple[int, int] | None, latents_of: Latents, seen_of: See) -> None:
    """δ has the size η‖x̂0‖, and along −δ the Vendi score of memory and image rises the fastest: by autograd through φ."""
    clean, feature_map = latents_of(0, 1, torch.float64), FeatureMap(grid)
    known = feature_map.feature(latents_of(7, 5, torch.float64) + clean)
    delta = LatentVendi(eta=1e-3).push(seen_of(clean, Entries(known, torch.ones(5).double()), grid=grid))
    assert float(delta.norm()) == pytest.approx(1e-3 * float(clean.norm()))
    moving = clean.clone().requires_grad_()
    value = entropy(torch.cat([feature_map.apply(moving), known]), torch.ones(6).double())
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
    """Of ten steps with a window of 0.55 and an interval of 2 the steps 0, 2 and 4 push; eta 0 never does."""
    rival = LatentVendi(window=0.45, interval=2)
    sizes = []
    for index in range(10):
        delta = rival.push(seen_of(latents_of(0), index=index))
        sizes.append(0.0 if delta is None else float(delta[0].norm() / latents_of(0)[0].norm()))
    assert sizes == pytest.approx([0.1, 0, 0.1, 0, 0.05, 0, 0, 0, 0, 0], rel=1e-4)
    assert LatentVendi(eta=0.0).push(seen_of(latents_of(0))) is None
