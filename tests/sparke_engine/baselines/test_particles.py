"""Particle Guidance against autograd of its potential in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparke_engine.baselines import ParticleGuidance
from sparke_engine.baselines.particles import repulsion
from sparke_engine.baselines.rival import Seen
from sparke_engine.core.kernels import unit
from sparke_engine.diffusion.schedulers import NoiseLevel
from sparke_engine.guidance.features import FeatureMap
from sparke_engine.guidance.push import Entries

Latents = Callable[..., Tensor]
See = Callable[..., Seen]


def slow_force(place: int, points: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """−∇ of Σ_j a_j exp(−‖u − u_j‖²/h) by u, by autograd at fixed h; `others` without the point."""
    moving = points[place].clone().requires_grad_()
    squared = (moving - others).square().sum(1)
    lower_median = squared.detach().sqrt().sort().values[(len(others) - 1) // 2]
    bandwidth = lower_median**2 / math.log(len(others) + 1)
    potential = (weights * torch.exp(-squared / bandwidth)).sum()
    return -torch.autograd.grad(potential, moving)[0]


@pytest.mark.parametrize("n", [2, 3, 6])
def test_a_force_is_the_gradient(n: int, latents_of: Latents) -> None:
    """Among n points, each point's force is autograd's in float64; in fp32 to 1e-5 of it."""
    points = latents_of(n, n, torch.float64).flatten(1)
    is_self = torch.eye(n, dtype=torch.bool)
    expected = torch.stack(
        [slow_force(i, points, points[~is_self[i]], torch.ones(n - 1).double()) for i in range(n)]
    )
    force = repulsion(points, points, torch.ones(n, n).double(), is_self)
    torch.testing.assert_close(force, expected)
    single = repulsion(points.float(), points.float(), torch.ones(n, n), is_self).double()
    assert (single - expected).norm() < 1e-5 * expected.norm()


def test_a_point_where_half_the_others_coincide_has_no_scale(latents_of: Latents) -> None:
    """The median distance of such a point is 0: it feels nothing, the others do, and nothing is NaN."""
    points = latents_of(0, 4).flatten(1)
    points[1] = points[2] = points[0]
    force = repulsion(points, points, torch.ones(4, 4), torch.eye(4, dtype=torch.bool))
    assert not force[:3].any()
    assert force[3].norm() > 0


def test_noisy_latents_as_published(latents_of: Latents, seen_of: See) -> None:
    """ε′ = ε − c·σ̃·force, whatever the scale in which the scheduler keeps its latents; δ is that in terms of x̂0."""
    signal, noise = 0.6, 0.8
    noisy = latents_of(1)
    points = noisy.flatten(1)
    is_self = torch.eye(3, dtype=torch.bool)
    force = repulsion(points, points, torch.ones(3, 3), is_self).reshape(noisy.shape)
    ratio = noise / signal
    shift_of_noise = -5.0 * ratio * force
    expected = ratio * shift_of_noise  # x̂0 = (z − σε)/α moves by −σ/α of what ε moves by, and δ is subtracted
    rival = ParticleGuidance(coefficient=5.0)
    delta = rival.push(seen_of(latents_of(0), noisy=noisy, noise=NoiseLevel(signal, noise)))
    torch.testing.assert_close(delta, expected)
    kept = noisy / signal
    euler = rival.push(seen_of(latents_of(0), noisy=kept, noise=NoiseLevel(1.0, ratio)))
    torch.testing.assert_close(euler, expected)


@pytest.mark.parametrize("grid", [(2, 2), None])
def test_features_and_memory(grid: tuple[int, int] | None, latents_of: Latents, seen_of: See) -> None:
    """In feature space δ is c·σ̃²·∇ of the potential by x̂0, by autograd through φ and the norm, with weighted entries."""
    clean, feature_map = latents_of(0, 2, torch.float64), FeatureMap(grid)
    entries = Entries(
        feature_map.feature(latents_of(7, 3, torch.float64)), torch.tensor([1.0, 0.3, 0.0]).double()
    )
    rival = ParticleGuidance(coefficient=2.0, in_features=True, with_memory=True)
    delta = rival.push(seen_of(clean, entries, grid=grid))
    features = feature_map.feature(clean)
    for image in range(2):
        others = torch.cat([features[1 - image][None], entries.features])
        weights = torch.cat([torch.ones(1).double(), entries.weights])
        moving = clean[image].clone().requires_grad_()
        squared = (unit(feature_map.apply(moving[None])) - others).square().sum(1)
        bandwidth = squared.detach().sort().values[1] / math.log(5)
        (gradient,) = torch.autograd.grad((weights * torch.exp(-squared / bandwidth)).sum(), moving)
        torch.testing.assert_close(delta[image], 2.0 * (0.8 / 0.6) ** 2 * gradient)
    alone = ParticleGuidance(coefficient=2.0, in_features=True).push(seen_of(clean, entries, grid=grid))
    assert not torch.allclose(alone, delta)


@pytest.mark.parametrize(("ratio", "pushes"), [(0.99, False), (1.0, True), (20.0, True), (math.inf, False)])
def test_only_while_it_is_noisy(latents_of: Latents, seen_of: See, ratio: float, *, pushes: bool) -> None:
    """Below σ̃ = 1 nothing moves, nor at pure noise, where the published form is infinite."""
    noise = NoiseLevel(0.0, 1.0) if ratio == math.inf else NoiseLevel(1.0, ratio)
    delta = ParticleGuidance().push(seen_of(latents_of(0), noise=noise))
    assert (delta is not None) == pushes


def test_coefficient_zero_is_off(latents_of: Latents, seen_of: See) -> None:
    """At coefficient 0 there is no push."""
    assert ParticleGuidance(coefficient=0.0).push(seen_of(latents_of(0))) is None
