"""SPELL's sparse repellency against its definition."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparke_engine.baselines import Spell
from sparke_engine.baselines.rival import Seen
from sparke_engine.baselines.spell import sparse_repellency
from sparke_engine.core.kernels import unit
from sparke_engine.guidance.features import FeatureMap
from sparke_engine.guidance.push import Entries

Latents = Callable[..., Tensor]
See = Callable[..., Seen]


def slow_repellency(point: Tensor, centres: Tensor, weights: Tensor, radius: float) -> Tensor:
    """Σ_j a_j max(r/‖u − z_j‖ − 1, 0)(u − z_j), one ball after another."""
    total = torch.zeros_like(point)
    for centre, weight in zip(centres, weights, strict=True):
        away = point - centre
        if 0 < away.norm() < radius:
            total += weight * (radius / away.norm() - 1) * away
    return total


@pytest.mark.parametrize("radius", [0.5, 12.0, 15.0])
def test_the_sum_is_the_definition(radius: float, latents_of: Latents) -> None:
    """For points inside and outside of balls, Δ is the definition's in float64; in fp32 to 1e-5 of it."""
    points = latents_of(0, 4, torch.float64).flatten(1)
    centres = latents_of(1, 5, torch.float64).flatten(1)
    weights = torch.rand(4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = torch.stack(
        [slow_repellency(p, centres, w, radius) for p, w in zip(points, weights, strict=True)]
    )
    assert bool(expected.any()) == (radius > 1)
    torch.testing.assert_close(sparse_repellency(points, centres, weights, radius), expected)
    single = sparse_repellency(points.float(), centres.float(), weights.float(), radius).double()
    assert (single - expected).norm() <= 1e-5 * expected.norm()


def test_one_ball_moves_to_its_surface(latents_of: Latents) -> None:
    """A point in one ball ends on its surface; outside of it, it stays to the bit."""
    point, centre = latents_of(0, 1, torch.float64).flatten(1), latents_of(1, 1, torch.float64).flatten(1)
    distance = float((point - centre).norm())
    one = torch.ones(1, 1, dtype=torch.float64)
    moved = point + sparse_repellency(point, centre, one, 1.3 * distance)
    assert float((moved - centre).norm()) == pytest.approx(1.3 * distance)
    assert not sparse_repellency(point, centre, one, 0.99 * distance).any()


def test_a_centre_gives_no_direction(latents_of: Latents) -> None:
    """A point at a ball's centre is not moved by it, but by the others."""
    points = latents_of(0, 1).flatten(1)
    centres = torch.cat([points, points + 0.1])
    weights = torch.ones(1, 2)
    moved = sparse_repellency(points, centres, weights, 2.0)
    torch.testing.assert_close(moved, sparse_repellency(points, centres[1:], weights[:, 1:], 2.0))
    assert not sparse_repellency(points, points, weights[:, :1], 2.0).any()


@pytest.mark.parametrize("distance", [1e-1, 1e-3, 1e-4])
@pytest.mark.parametrize("dimension", [64, 1024])
def test_the_nearest_balls_push_most(dimension: int, distance: float) -> None:
    """In fp32 a point that nearly coincides with a centre is moved to the ball's surface, as in float64."""
    generator = torch.Generator().manual_seed(dimension)
    point = unit(torch.randn(1, dimension, generator=generator))
    centres = unit(point + distance * unit(torch.randn(3, dimension, generator=generator)))
    expected = slow_repellency(point[0].double(), centres.double(), torch.ones(3).double(), 0.8)
    moved = sparse_repellency(point, centres, torch.ones(1, 3), 0.8)
    assert moved.dtype == torch.float32
    assert expected.norm() > 0.5
    assert (moved[0].double() - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_centre_but_for_rounding_gives_no_direction(dtype: torch.dtype) -> None:
    """One direction, made a unit vector in two ways, is one place: what differs is rounding and gets no push."""
    points = torch.randn(50, 1024, generator=torch.Generator().manual_seed(0), dtype=dtype)
    centres = unit(3 * points)
    assert not torch.equal(unit(points), centres)
    for point, centre in zip(unit(points).split(1), centres.split(1), strict=True):
        assert not sparse_repellency(point, centre, torch.ones(1, 1, dtype=dtype), 0.8).any()


@pytest.mark.parametrize("with_fellows", [True, False])
def test_entries_in_half_precision(latents_of: Latents, seen_of: See, *, with_fellows: bool) -> None:
    """Entries that a memory keeps in half precision count as the same numbers in single precision."""
    clean, feature_map = latents_of(0, 3), FeatureMap((2, 2))
    half = Entries(feature_map.feature(latents_of(7, 2)).half(), torch.tensor([1.0, 0.4]))
    single = Entries(half.features.float(), half.weights)
    rival = Spell(radius=1.7, with_fellows=with_fellows)
    assert torch.equal(rival.push(seen_of(clean, half)), rival.push(seen_of(clean, single)))


@pytest.mark.parametrize("grid", [(2, 2), None])
@pytest.mark.parametrize("with_fellows", [True, False])
def test_features_move_by_the_sum(
    latents_of: Latents, seen_of: See, grid: tuple[int, int] | None, *, with_fellows: bool
) -> None:
    """φ(x̂0 − δ) is φ(x̂0) + ‖φ(x̂0)‖·λ·Δ, Δ over entries and, where asked for, fellow images."""
    clean, feature_map = latents_of(0, 3, torch.float64), FeatureMap(grid)
    entries = Entries(feature_map.feature(latents_of(7, 2, torch.float64)), torch.tensor([1.0, 0.4]).double())
    rival = Spell(radius=1.7, overcompensation=1.5, with_fellows=with_fellows)
    delta = rival.push(seen_of(clean, entries, grid=grid))
    mapped, features = feature_map.apply(clean), feature_map.feature(clean)
    for image in range(3):
        centres, weights = entries.features, entries.weights
        if with_fellows:
            others = [place for place in range(3) if place != image]
            centres = torch.cat([centres, features[others]])
            weights = torch.cat([weights, torch.ones(2).double()])
        away = slow_repellency(features[image], centres, weights, 1.7)
        expected = mapped[image] + 1.5 * mapped[image].norm() * away
        torch.testing.assert_close(feature_map.apply((clean - delta)[image : image + 1])[0], expected)


def test_zero_is_off(latents_of: Latents, seen_of: See) -> None:
    """Without a radius or without λ there is no push."""
    assert Spell(radius=0.0).push(seen_of(latents_of(0))) is None
    assert Spell(overcompensation=0.0).push(seen_of(latents_of(0))) is None
