"""Novelty and context as a pure function: sign, weight, size of the set, and every degenerate case."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparke_engine.core.kernels import unit
from sparke_engine.errors import InvalidArgument, ShapeMismatch
from sparke_engine.guidance.denoised import Extrapolation
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries, Push, Reference
from sparke_engine.guidance.references import reference_shift, references_push

PRESET = DiversityPreset(grid=(2, 2), latent_bandwidth=1.5, reference_bandwidth=0.8)


def latents_of(seed: int, n: int = 1) -> Tensor:
    """Random latents 3×6×6, float64."""
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entries_of(seed: int, n: int = 1, preset: DiversityPreset = PRESET) -> Entries:
    """Entries at random latents, each of weight 1."""
    return Entries(preset.feature_map.feature(latents_of(seed, n)), torch.ones(n, dtype=torch.float64))


def push_of(
    latents: Tensor, *references: Reference, preset: DiversityPreset = PRESET, limit: float = 1e9
) -> Push:
    """The push at η = 0.5 without classifier-free guidance."""
    return references_push(latents, references, preset, eta=0.5, limit=torch.full((len(latents),), limit))


def similarity(latents: Tensor, entries: Entries, preset: DiversityPreset = PRESET) -> Tensor:
    """Σ_j k(f, f_j)^p of each of the latents."""
    return preset.reference_kernel.gram(preset.feature_map.feature(latents), entries.features).sum(1)


def similarity_of_nearest(latents: Tensor, entries: Entries) -> Tensor:
    """max_j k_Z(f, f_j)^p of each of the latents."""
    return PRESET.latent_kernel.gram(PRESET.feature_map.feature(latents), entries.features).amax(1)


@pytest.mark.parametrize("num_entries", [1, 7])
@pytest.mark.parametrize("preset", [PRESET, replace(PRESET, grid=None)])
def test_novelty_leads_away_and_context_toward(preset: DiversityPreset, num_entries: int) -> None:
    """A small push of novelty lowers the similarity to the reference, one of context raises it."""
    latents, entries = latents_of(0, 3), entries_of(1, num_entries, preset)
    before = similarity(latents, entries, preset)
    for weight in (1.0, -1.0):
        delta = push_of(latents, Reference(entries, weight), preset=preset).delta
        after = similarity(latents - 1e-3 * delta, entries, preset)
        assert ((before - after) * weight > 0).all()


def test_the_shift_is_the_gradient_of_the_log_density() -> None:
    """(p/σ²)·μ is autograd's gradient of log Σ_j a_j k(f, f_j)^p, and the nearness is the largest k_Z^p."""
    entries = Entries(entries_of(1, 9).features, torch.linspace(0.5, 3, 9, dtype=torch.float64))
    features = PRESET.feature_map.feature(latents_of(0, 4)).requires_grad_()
    values = PRESET.reference_kernel.gram(features, entries.features)
    (gradient,) = torch.autograd.grad((values * entries.weights).sum(1).log().sum(), features)
    shift = reference_shift(features.detach(), entries, PRESET)
    torch.testing.assert_close(PRESET.reference_kernel.steepness * shift.direction, gradient)
    torch.testing.assert_close(
        shift.nearness, PRESET.latent_kernel.gram(features, entries.features).amax(1).detach()
    )


@pytest.mark.parametrize("weight", [0.7, -0.7])
def test_the_size_of_a_reference_does_not_count(weight: float) -> None:
    """Every entry three times, or each at three times its weight, is the same reference."""
    latents, entries = latents_of(0, 2), entries_of(1, 5)
    once = push_of(latents, Reference(entries, weight))
    thrice = Entries(entries.features.repeat(3, 1), torch.ones(15, dtype=torch.float64))
    heavier = Entries(entries.features, 3 * entries.weights)
    for other in (thrice, heavier):
        torch.testing.assert_close(push_of(latents, Reference(other, weight)).delta, once.delta)


def test_the_push_grows_with_the_weight() -> None:
    """Its size is η times the weight times the nearness of the nearest image; a weight of 0 is nothing."""
    latents, entries = latents_of(0, 2), entries_of(1, 5)
    nearness = similarity_of_nearest(latents, entries)
    for weight in (0.0, 0.25, 0.5, 1.0):
        toward = push_of(latents, Reference(entries, -weight))
        away = push_of(latents, Reference(entries, weight))
        for push in (toward, away):
            torch.testing.assert_close(push.relative, 0.5 * weight * nearness)
        size = toward.delta.flatten(1).norm(dim=1) / latents.flatten(1).norm(dim=1)
        torch.testing.assert_close(size, toward.relative)


def test_context_leads_to_the_nearest_mode() -> None:
    """Between two far modes the pull is to the nearer one, not to the mean of both."""
    near, far = entries_of(1).features, -entries_of(1).features
    features = unit(near + 0.3 * entries_of(2).features)
    both = Entries(torch.cat([near, far]), torch.ones(2, dtype=torch.float64))
    shift = reference_shift(features, both, replace(PRESET, reference_bandwidth=0.4))
    torch.testing.assert_close(shift.direction, near - features, rtol=1e-6, atol=1e-6)


def test_two_references_add_and_stay_within_one() -> None:
    """Novelty and context act together; the same set for both cancels; two of one direction are bounded by η."""
    latents = latents_of(0, 2)
    one, other = entries_of(1), entries_of(2)
    both = push_of(latents, Reference(one, -0.5), Reference(other, -0.25))
    alone = push_of(latents, Reference(one, -0.5)).delta + push_of(latents, Reference(other, -0.25)).delta
    torch.testing.assert_close(unit(both.delta.flatten(1)), unit(alone.flatten(1)))
    wide = replace(PRESET, latent_bandwidth=1e4)
    doubled = push_of(latents, Reference(one, -1.0), Reference(one, -1.0), preset=wide)
    torch.testing.assert_close(doubled.delta, push_of(latents, Reference(one, -1.0), preset=wide).delta)
    cancelled = push_of(latents, Reference(one, -1.0), Reference(one, 1.0))
    assert torch.equal(cancelled.delta, torch.zeros_like(latents))


def test_nothing_is_pushed_along_the_axis_of_guidance() -> None:
    """The pooled push is orthogonal to φ(x̂0 − x̂0ᶜ), and seen from x̂0ᶜ."""
    prompted, clean = latents_of(0, 3), latents_of(0, 3) + 2 * latents_of(5, 3)
    reference = (Reference(entries_of(1, 4), -1.0),)
    push = references_push(
        clean, reference, PRESET, eta=0.5, limit=torch.ones(3), extrapolation=Extrapolation(prompted, 5.0)
    )
    feature_map = PRESET.feature_map
    along = (unit(feature_map.apply(clean - prompted)) * unit(feature_map.apply(push.delta))).sum(1)
    assert push.delta.norm() > 0
    torch.testing.assert_close(along, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(push.relative, 0.5 * similarity_of_nearest(prompted, reference[0].entries))


@pytest.mark.parametrize("weight", [1.0, -1.0])
@pytest.mark.parametrize(
    "entries",
    [Entries(torch.zeros(0, 12), torch.zeros(0)), entries_of(0)],
    ids=["empty", "coincident"],
)
def test_degenerate_references_push_nothing(entries: Entries, weight: float) -> None:
    """No entries, or a single one at the image itself: exactly zero."""
    push = push_of(latents_of(0), Reference(entries, weight))
    assert torch.equal(push.delta, torch.zeros_like(push.delta))
    assert float(push.relative) == 0


def test_a_far_reference_is_finite() -> None:
    """Where every k underflows the nearest entry leads; where k_Z does too, nothing is pushed; all is finite."""
    preset = replace(PRESET, reference_bandwidth=1e-3)
    latents, entries = latents_of(0, 2), entries_of(1, 3)
    nowhere = push_of(latents, Reference(entries, -1.0), preset=replace(preset, latent_bandwidth=1e-3))
    assert torch.equal(nowhere.delta, torch.zeros_like(latents))
    toward = push_of(latents, Reference(entries, -1.0), preset=preset)
    features = preset.feature_map.feature(latents)
    nearest = entries.features[(features @ entries.features.T).argmax(1)]
    expected = preset.feature_map.adjoint(nearest - features, latents)
    torch.testing.assert_close(unit(-toward.delta.flatten(1)), unit(expected.flatten(1)))


def test_the_limit_bounds_the_push() -> None:
    """What is left of the bound is all that is pushed."""
    push = push_of(latents_of(0, 2), Reference(entries_of(1), -1.0), limit=0.07)
    torch.testing.assert_close(push.relative, torch.full((2,), 0.07, dtype=torch.float64))


def test_a_reference_that_does_not_fit_is_refused() -> None:
    """Weights are within [−1, 1], features as long as the engine's."""
    Reference(entries_of(1), -1.0).check(12)
    with pytest.raises(InvalidArgument, match=r"1\.5"):
        Reference(entries_of(1), 1.5).check(12)
    with pytest.raises(ShapeMismatch, match="12"):
        Reference(entries_of(1), 1.0).check(16)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_reference_that_is_not_finite_is_refused(value: float) -> None:
    """NaN or infinity in its features, and weights that no sample has, are errors, not a push of zero."""
    good = entries_of(1, 3)
    broken = good.features.clone()
    broken[1, 2] = value
    with pytest.raises(InvalidArgument, match="a reference's features hold NaN or infinity"):
        Reference(replace(good, features=broken), 1.0).check(12)
    for weight in (value, 0.0, -1.0):
        with pytest.raises(InvalidArgument, match="entries' weights are positive and finite"):
            Reference(replace(good, weights=torch.tensor([1.0, weight, 1.0])), 1.0).check(12)
    Reference(Entries(torch.zeros(0, 0), torch.zeros(0)), 1.0).check(12)


@pytest.mark.parametrize("copies", [1, 1000, 16384])
@pytest.mark.parametrize("grid", [(2, 2), None])
def test_copies_of_the_image_have_no_direction(grid: tuple[int, int] | None, copies: int) -> None:
    """In fp32 a reference of any number of copies of the image pushes nothing: what is left of the sum is rounding."""
    preset = replace(PRESET, grid=grid, reference_bandwidth=0.3)
    latents = latents_of(0, 2).float()
    for image in latents.split(1):
        copied = Entries(preset.feature_map.feature(image).expand(copies, -1).clone(), torch.ones(copies))
        for weight in (1.0, -1.0):
            push = push_of(image, Reference(copied, weight), preset=preset)
            assert torch.equal(push.delta, torch.zeros_like(push.delta))
            assert float(push.relative) == 0
