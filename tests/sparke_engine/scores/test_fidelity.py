"""Precision, recall, density and coverage against their definitions written out as loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparke_engine.errors import InvalidArgument, ShapeMismatch
from sparke_engine.scores import coverage, density, prdc, precision, recall

MEASURES = [precision, recall, density, coverage]


def cloud(n: int, d: int, seed: int) -> Tensor:
    """Random rows: no two distances are equal."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def radii(rows: np.ndarray, k: int) -> list[float]:
    """The distance of each row to its k-th nearest other row."""
    return [
        sorted(math.dist(row, other) for j, other in enumerate(rows) if j != i)[k - 1]
        for i, row in enumerate(rows)
    ]


def oracle(x: Tensor, r: Tensor, k: int) -> tuple[float, float, float, float]:
    """All four, pair by pair."""
    features, reference = x.numpy(), r.numpy()
    own, real = radii(features, k), radii(reference, k)
    in_support = [any(math.dist(p, q) <= s for q, s in zip(reference, real, strict=True)) for p in features]
    in_own = [any(math.dist(q, p) <= s for p, s in zip(features, own, strict=True)) for q in reference]
    held = sum(math.dist(p, q) < s for p in features for q, s in zip(reference, real, strict=True))
    near = [any(math.dist(p, q) < s for p in features) for q, s in zip(reference, real, strict=True)]
    return (
        float(np.mean(in_support)),
        float(np.mean(in_own)),
        held / (k * len(features)),
        float(np.mean(near)),
    )


problems = st.tuples(st.integers(2, 14), st.integers(2, 14), st.integers(1, 5), st.integers(0, 2**31))


@given(problems, st.data())
def test_all_four_are_their_definitions(problem: tuple[int, int, int, int], data: st.DataObject) -> None:
    """One by one and together."""
    n, m, d, seed = problem
    k = data.draw(st.integers(1, min(n, m) - 1))
    x, r = cloud(n, d, seed), 1.5 * cloud(m, d, seed + 1) + 0.5
    expected = oracle(x, r, k)
    assert prdc(x, r, num_neighbours=k) == pytest.approx(expected, rel=1e-12)  # means of counts
    assert [measure(x, r, num_neighbours=k) for measure in MEASURES] == pytest.approx(expected, rel=1e-12)


@given(st.integers(2, 14), st.integers(1, 5), st.integers(0, 2**31), st.data())
def test_a_set_is_within_itself(n: int, d: int, seed: int, data: st.DataObject) -> None:
    """In any order: precision, recall and coverage 1, and without duplicates density 1."""
    x, k = cloud(n, d, seed), data.draw(st.integers(1, n - 1))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert prdc(x[order], x, num_neighbours=k) == pytest.approx((1, 1, 1, 1), rel=1e-12)


@given(st.integers(3, 12), st.integers(0, 2**31), st.data())
def test_duplicates_do_no_harm(n: int, seed: int, data: st.DataObject) -> None:
    """A set with duplicates is within itself too, whatever rounding makes of their distances."""
    x = cloud(n, 7, seed) * 1e3 + 1e3
    x = x[torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n)))]
    found = prdc(x.flip(0), x, num_neighbours=data.draw(st.integers(1, n - 1)))
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)


def test_equal_rows_alone() -> None:
    """Balls of radius 0 hold their centre and nothing else."""
    same = torch.full((6, 3), 0.1)
    assert prdc(same, same, num_neighbours=2) == (1, 1, 3, 1)
    assert prdc(same + 1, same, num_neighbours=2) == (0, 0, 0, 0)


@given(problems, st.floats(0.01, 100))
def test_motion_and_scale_do_not_matter(problem: tuple[int, int, int, int], scale: float) -> None:
    """Balls move, turn and grow with the rows, whose order tells nothing."""
    n, m, d, seed = problem
    x, r = cloud(n, d, seed), cloud(m, d, seed + 1)
    turn = torch.linalg.qr(cloud(d, d, seed + 2)).Q
    moved = [scale * (rows.flip(0) @ turn) + 2 for rows in (x, r)]
    assert prdc(*moved, num_neighbours=1) == pytest.approx(prdc(x, r, num_neighbours=1), rel=1e-12)


@given(problems)
def test_they_stay_in_their_ranges(problem: tuple[int, int, int, int]) -> None:
    """Shares are in [0, 1], density is at most m/k; recall is precision the other way round."""
    n, m, d, seed = problem
    x, r = cloud(n, d, seed), cloud(m, d, seed + 1)
    found = prdc(x, r, num_neighbours=1)
    assert all(0 <= share <= 1 for share in (found.precision, found.recall, found.coverage))
    assert 0 <= found.density <= m
    assert found.recall == precision(r, x, num_neighbours=1)


def test_far_apart_is_nothing() -> None:
    """Sets that do not meet have 0 everywhere."""
    assert prdc(cloud(9, 3, 0) + 1e3, cloud(8, 3, 1)) == (0, 0, 0, 0)


def test_known_by_hand() -> None:
    """On a line, k = 1: the reference 0, 1, 3 has balls of radius 1, 1, 2."""
    x, r = torch.tensor([[0.5], [2.0], [9.0]]), torch.tensor([[0.0], [1.0], [3.0]])
    assert precision(x, r, num_neighbours=1) == pytest.approx(2 / 3)  # 9 is outside
    assert density(x, r, num_neighbours=1) == pytest.approx(
        3 / 3
    )  # .5 in two balls, 2 in the third, on an edge
    assert coverage(x, r, num_neighbours=1) == 1
    assert (
        recall(x, r, num_neighbours=1) == 1
    )  # x has balls of radius 1.5, 1.5, 7: 0 and 1 in the first, 3 in the second


def test_one_distribution() -> None:
    """Independent samples of it: density near 1, coverage near 1 − 2⁻ᵏ."""
    x, r = cloud(1500, 4, 0), cloud(1500, 4, 1)
    found = prdc(x, r, num_neighbours=3)
    assert found.density == pytest.approx(1, abs=0.1)  # four deviations over ten other seeds
    assert found.coverage == pytest.approx(1 - 2**-3, abs=0.05)  # likewise


@given(st.integers(1, 9))
def test_blocks_do_not_matter(block_rows: int) -> None:
    """Any block size gives the same."""
    x, r = cloud(11, 3, 0), cloud(8, 3, 1)
    assert prdc(x, r, num_neighbours=2, block_rows=block_rows) == prdc(x, r, num_neighbours=2)


def test_half_precision_is_not_lost() -> None:
    """fp16 rows whose squares overflow fp16 are compared as what they are."""
    x, r = (300 * cloud(20, 5, seed) for seed in (0, 1))
    assert prdc(x.half(), r.half()) == prdc(x.half().double(), r.half().double())


@pytest.mark.parametrize("measure", [*MEASURES, prdc])
def test_what_has_no_neighbours_is_refused(measure) -> None:
    """Neighbours are fewer than rows and at least one; rows are there, finite and of one length."""
    x = cloud(4, 3, 0)
    with pytest.raises(InvalidArgument, match="a row of 4 has at most 3 neighbours"):
        measure(x, x, num_neighbours=4)
    with pytest.raises(InvalidArgument, match="at least 1 is needed, got 0"):
        measure(x, x, num_neighbours=0)
    with pytest.raises(InvalidArgument, match="a row of 1 has at most 0 neighbours"):
        measure(x[:1], x[:1], num_neighbours=1)
    with pytest.raises(InvalidArgument, match="features need at least one row, got 0"):
        measure(x[:0], x, num_neighbours=1)
    with pytest.raises(InvalidArgument, match="reference features hold NaN"):
        measure(x, x.log(), num_neighbours=1)
    with pytest.raises((ShapeMismatch, TypeError)):
        measure(x, cloud(4, 2, 0), num_neighbours=1)
