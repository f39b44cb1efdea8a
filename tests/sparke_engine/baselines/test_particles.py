"""Particle Guidance against autograd of its potential in float64."""

import math
from collections.abc import Callable

import numpy as np
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
    # h = median²/log(number of images − 1) as published; of two images it would be infinite, and log 2 stands there
    bandwidth = lower_median**2 / math.log(max(len(others), 2))
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


def published_shift(noisy: Tensor, coefficient: float, ratio: float) -> Tensor:
    """What the published loop adds to −ε: for each image over the others Σ 2 w (u − u_j)/h · σ̃ · c, with numpy alone."""
    images = noisy.flatten(1).numpy()
    shifts = np.zeros_like(images)
    for place, image in enumerate(images):
        differences = [image - other for number, other in enumerate(images) if number != place]
        distances = sorted(float(np.linalg.norm(difference)) for difference in differences)
        bandwidth = distances[(len(distances) - 1) // 2] ** 2 / np.log(len(images) - 1)
        for difference in differences:
            weight = np.exp(-(difference**2).sum() / bandwidth)
            shifts[place] += 2 * weight * difference / bandwidth * ratio * coefficient
    return torch.from_numpy(shifts).reshape(noisy.shape)


@pytest.mark.parametrize("n", [3, 4, 8])
def test_a_step_is_the_published_one(n: int, latents_of: Latents, seen_of: See) -> None:
    """ε falls by the published sum, so x̂0 = (z − σε)/α grows by σ̃ times it."""
    noisy, ratio = latents_of(n, n), 0.8 / 0.6
    delta = ParticleGuidance(coefficient=5.0).push(seen_of(latents_of(0, n), noisy=noisy))
    expected = -ratio * published_shift(noisy.double(), 5.0, ratio)
    torch.testing.assert_close(delta.double(), expected, rtol=1e-5, atol=1e-6)  # latents are fp32


def test_two_images_repel(latents_of: Latents) -> None:
    """Of two images the published bandwidth is infinite and nothing would move; with log 2 they part."""
    points = latents_of(0, 2).flatten(1)
    force = repulsion(points, points, torch.ones(2, 2), torch.eye(2, dtype=torch.bool))
    assert (force[0] @ (points[0] - points[1])) > 0
    torch.testing.assert_close(force[0], -force[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_that_coincide_but_for_rounding(dtype: torch.dtype) -> None:
    """One direction, made a unit vector in two ways, is one place and no scale."""
    rows = torch.randn(20, 1024, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for row in rows.split(1):
        points = torch.cat([unit(row), unit(3 * row)])
        force = repulsion(points, points, torch.ones(2, 2, dtype=dtype), torch.eye(2, dtype=torch.bool))
        assert not force.any()


@pytest.mark.parametrize("distance", [1e-1, 1e-3, 1e-4])
def test_near_duplicates_repel(distance: float) -> None:
    """In fp32 the force between points that nearly coincide is float64's."""
    generator = torch.Generator().manual_seed(1)
    point = unit(torch.randn(1, 1024, generator=generator))
    points = torch.cat([point, unit(point + distance * unit(torch.randn(2, 1024, generator=generator)))])
    is_self = torch.eye(3, dtype=torch.bool)
    expected = repulsion(points.double(), points.double(), torch.ones(3, 3).double(), is_self)
    force = repulsion(points, points, torch.ones(3, 3), is_self)
    assert force.dtype == torch.float32
    assert (force.double() - expected).norm() < 1e-5 * expected.norm()


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
        bandwidth = squared.detach().sort().values[1] / math.log(4)
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
