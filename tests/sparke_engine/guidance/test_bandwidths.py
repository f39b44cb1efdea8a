"""Bandwidths from samples against a search over a grid and against counts by hand."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparke_engine.core.kernels import GaussianPower
from sparke_engine.errors import InvalidArgument, ShapeMismatch
from sparke_engine.guidance.bandwidths import latent_bandwidth_from, pair_distances, prompt_bandwidth_from

distances = st.lists(st.floats(0.01, 2), min_size=1, max_size=12)


def shares(
    related: list[float], unrelated: list[float], bandwidth: float, power: float
) -> tuple[float, float]:
    """How many related pairs have k_Y^p ≥ 0.5 and unrelated ones ≤ 0.01, with an ulp for the edge."""

    def kernel(distance: float) -> float:
        return math.exp(-power * distance**2 / (2 * bandwidth**2))

    near = [kernel(distance) >= 0.5 * (1 - 1e-12) for distance in related]
    far = [kernel(distance) <= 0.01 * (1 + 1e-12) for distance in unrelated]
    return statistics.fmean(near), statistics.fmean(far)


@given(distances, distances, st.sampled_from([1.0, 2.0]))
def test_what_is_told_is_so(related: list[float], unrelated: list[float], power: float) -> None:
    """The shares and the median are those at the bandwidth, and unrelated pairs are kept off always."""
    found = prompt_bandwidth_from(
        torch.tensor(related, dtype=torch.float64), torch.tensor(unrelated, dtype=torch.float64), power=power
    )
    told = (found.related_near, found.unrelated_far)
    assert told == pytest.approx(shares(related, unrelated, found.bandwidth, power))
    assert found.unrelated_far >= 0.95
    assert found.can_be_had == (found.related_near >= 0.95)
    kernels = [math.exp(-power * distance**2 / (2 * found.bandwidth**2)) for distance in related]
    assert found.related_kernel == pytest.approx(statistics.median_low(kernels))


@given(distances, distances, st.sampled_from([0.6, 0.95]))
def test_the_range_is_what_was_asked_for(related: list[float], unrelated: list[float], share: float) -> None:
    """From `least` on that share of related pairs is near, up to `most` of unrelated ones far, no step further."""
    found = prompt_bandwidth_from(
        torch.tensor(related, dtype=torch.float64), torch.tensor(unrelated, dtype=torch.float64), share=share
    )
    assert shares(related, unrelated, found.least, 2.0)[0] >= share
    assert shares(related, unrelated, found.least * (1 - 1e-9), 2.0)[0] < share
    assert shares(related, unrelated, found.most, 2.0)[1] >= share
    assert shares(related, unrelated, found.most * (1 + 1e-9), 2.0)[1] < share


def test_known_by_hand() -> None:
    """One pair of each kind, power 2: σ from d/√ln 2 to D/√ln 100, and the geometric mean of both."""
    found = prompt_bandwidth_from(torch.tensor([0.1]), torch.tensor([1.0]))
    assert found.least == pytest.approx(0.1 / math.log(2) ** 0.5)
    assert found.most == pytest.approx(1 / math.log(100) ** 0.5)
    assert found.bandwidth == pytest.approx((found.least * found.most) ** 0.5)
    assert found.can_be_had
    assert GaussianPower(found.least, 2.0).gram(torch.zeros(1, 1), torch.full((1, 1), 0.1)).item() == (
        pytest.approx(0.5)
    )


def test_unrelated_pairs_come_first() -> None:
    """Unrelated prompts less than 2.58 times as far apart: both cannot be had, and they are kept off."""
    found = prompt_bandwidth_from(torch.tensor([0.5]), torch.tensor([1.25]))
    assert not found.can_be_had
    assert found.bandwidth == found.most
    assert (found.related_near, found.unrelated_far) == (0, 1)
    assert prompt_bandwidth_from(torch.tensor([0.5]), torch.tensor([1.3])).can_be_had


def test_related_prompts_that_coincide_ask_for_nothing() -> None:
    """Then the widest bandwidth that keeps the others apart is taken."""
    found = prompt_bandwidth_from(torch.zeros(3), torch.tensor([1.0, 1.0]))
    assert found.bandwidth == pytest.approx(1 / math.log(100) ** 0.5)
    assert (found.related_near, found.unrelated_far) == (1, 1)


def test_an_encoder_that_tells_nothing_apart_is_refused() -> None:
    """Unrelated prompts at distance 0 have no bandwidth."""
    with pytest.raises(InvalidArgument, match="coincide"):
        prompt_bandwidth_from(torch.zeros(3), torch.zeros(2))


def test_equal_prompts_coincide_whatever_rounding_leaves() -> None:
    """One embedding again and again lies 1e-8 from itself: as unrelated that is refused, as related it asks for nothing."""
    apart = 0
    for seed in range(9):
        once = torch.randn(2, 768, generator=torch.Generator().manual_seed(seed))
        embeddings, scenes = once[[0, 0, 0, 1]], torch.tensor([0, 0, 0, 1])
        related, unrelated = pair_distances(embeddings, scenes)
        apart += bool(related.any())
        found = prompt_bandwidth_from(related, unrelated)
        assert found.bandwidth == found.most
        with pytest.raises(InvalidArgument, match="coincide"):
            prompt_bandwidth_from(related, pair_distances(embeddings[:3], torch.arange(3))[1])
    assert apart > 0  # else nothing was tried


def test_pairs_are_sorted_by_scene() -> None:
    """Each pair once; scale of an embedding tells nothing."""
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    related, unrelated = pair_distances(embeddings, torch.tensor([7, 7, 5]))
    assert related.tolist() == pytest.approx([2**0.5])
    assert unrelated.tolist() == pytest.approx([0, 2**0.5])


@given(st.integers(2, 12), st.integers(2, 5), st.integers(0, 2**31))
def test_the_latent_bandwidth_is_the_median(n: int, d: int, seed: int) -> None:
    """Of the distances of all pairs of directions, written out."""
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points = [(row / row.norm()).tolist() for row in rows]
    each = [math.dist(points[i], points[j]) for i in range(n) for j in range(i)]
    assert latent_bandwidth_from(3 * rows) == pytest.approx(
        statistics.median(each), rel=1e-6
    )  # ‖a−b‖² rounds


def test_equal_latents_have_no_scale() -> None:
    """One image again and again is no sample."""
    with pytest.raises(InvalidArgument, match="different images"):
        latent_bandwidth_from(torch.rand(1, 64).expand(9, -1))


def test_what_is_no_sample_is_refused() -> None:
    """No pairs, negative or infinite distances, shares beyond their range, rows that do not fit."""
    good = torch.tensor([0.1, 0.2])
    with pytest.raises(InvalidArgument, match="related pairs, got none"):
        prompt_bandwidth_from(good[:0], good)
    with pytest.raises(InvalidArgument, match="finite and not negative"):
        prompt_bandwidth_from(good, -good)
    with pytest.raises(InvalidArgument, match="finite and not negative"):
        prompt_bandwidth_from(good / 0, good)
    with pytest.raises(InvalidArgument, match="far is between 0 and 1"):
        prompt_bandwidth_from(good, good, far=0.0)
    for near, far in ((0.01, 0.5), (0.3, 0.3)):
        with pytest.raises(InvalidArgument, match="far is below near"):
            prompt_bandwidth_from(good, good, near=near, far=far)
    for power in (0.0, float("inf")):
        with pytest.raises(InvalidArgument, match="power is positive and finite"):
            prompt_bandwidth_from(good, good, power=power)
    with pytest.raises((ShapeMismatch, TypeError)):
        prompt_bandwidth_from(good[None], good)
    with pytest.raises((ShapeMismatch, TypeError)):
        pair_distances(torch.ones(3, 2), torch.tensor([0, 1]))
    with pytest.raises(InvalidArgument, match="at least 2 rows"):
        latent_bandwidth_from(torch.ones(1, 2))
