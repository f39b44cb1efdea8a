"""Fréchet and kernel distance against scipy, loops and closed forms."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparke_engine.errors import InvalidArgument, ShapeMismatch
from sparke_engine.scores import frechet_distance, kid, polynomial_mmd

# Sums of at most 400 float64 terms, and singular values of at most 6×6: some ulps of the largest term.
TOLERANCE = 1e-10
# An eigenvalue that should be 0 is an ulp, and the oracle takes its root.
ROOT_TOLERANCE = 1e-6


def cloud(n: int, d: int, seed: int) -> Tensor:
    """Rows with correlated columns of unlike sizes, away from the origin."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + mixing[0]


def gaussian_cloud(mean: np.ndarray, covariance: np.ndarray, seed: int) -> Tensor:
    """Rows whose mean and unbiased covariance are exactly these."""
    rows = np.random.default_rng(seed).normal(size=(40, len(mean)))
    rows -= rows.mean(0)
    whitened = rows @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(rows.T))).T)
    return torch.from_numpy(whitened @ np.linalg.cholesky(covariance).T + mean)


def root_of_product(a: np.ndarray, b: np.ndarray) -> float:
    """Tr (ab)^½ by eigenvalues of a^½ b a^½, for any covariances."""
    values, axes = np.linalg.eigh(a)
    root = axes * np.sqrt(values.clip(0)) @ axes.T
    return float(np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum())


def scipy_root_of_product(a: np.ndarray, b: np.ndarray) -> float:
    """Tr (ab)^½ by scipy's root of a matrix, for covariances that are not singular."""
    return float(np.trace(np.atleast_2d(scipy.linalg.sqrtm(a @ b))).real)


def frechet_oracle(x: Tensor, y: Tensor, root: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """The formula, term by term."""
    a, b = np.atleast_2d(np.cov(x.numpy().T)), np.atleast_2d(np.cov(y.numpy().T))
    gap = ((x.numpy().mean(0) - y.numpy().mean(0)) ** 2).sum()
    return float(gap + np.trace(a) + np.trace(b) - 2 * root(a, b))


def mmd_oracle(x: Tensor, y: Tensor) -> float:
    """Every pair, one by one."""

    def kernel(a: Tensor, b: Tensor) -> float:
        return (sum(float(p) * float(q) for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within + other - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


sizes = st.integers(2, 20)


@given(sizes, sizes, st.integers(1, 6), st.integers(0, 2**31))
def test_frechet_is_its_definition(n: int, m: int, d: int, seed: int) -> None:
    """Also where there are fewer rows than dimensions and the covariance is singular."""
    x, y = cloud(n, d, seed), cloud(m, d, seed + 1)
    scale = float(x.var(0).sum() + y.var(0).sum())
    expected = frechet_oracle(x, y, root_of_product)
    assert frechet_distance(x, y) == pytest.approx(expected, abs=ROOT_TOLERANCE * scale)


@pytest.mark.parametrize("seed", range(5))
def test_frechet_is_what_scipy_finds(seed: int) -> None:
    """With the root of the matrix that the formula has."""
    x, y = cloud(30, 5, seed), cloud(20, 5, seed + 100)
    expected = frechet_oracle(x, y, scipy_root_of_product)
    assert frechet_distance(x, y) == pytest.approx(
        expected, rel=1e-8
    )  # the root of a matrix that is not symmetric


@given(sizes, st.integers(1, 6), st.integers(0, 2**31))
def test_equal_sets_have_no_distance(n: int, d: int, seed: int) -> None:
    """The same rows in another order: 0 up to rounding, which the root of a product would not reach."""
    x = cloud(n, d, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert frechet_distance(x, x[order]) <= 1e-13 * float(x.var(0).sum() + x.square().sum(1).max())


def test_gaussians_of_one_dimension() -> None:
    """(μ − μ′)² + (s − s′)²."""
    x = gaussian_cloud(np.array([1.0]), np.array([[4.0]]), 0)
    y = gaussian_cloud(np.array([4.0]), np.array([[0.25]]), 1)
    assert frechet_distance(x, y) == pytest.approx(9 + 1.5**2, rel=TOLERANCE)


def test_gaussians_that_commute() -> None:
    """With covariances that share axes the distance is that of the standard deviations, axis by axis."""
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    a, b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.5, 3.0])
    x = gaussian_cloud(np.zeros(3), turn @ np.diag(a**2) @ turn.T, 1)
    y = gaussian_cloud(np.array([0.0, 1.0, 2.0]), turn @ np.diag(b**2) @ turn.T, 2)
    assert frechet_distance(x, y) == pytest.approx(5 + ((a - b) ** 2).sum(), rel=TOLERANCE)


@given(sizes, sizes, st.integers(0, 2**31), st.floats(0.1, 10))
def test_frechet_moves_and_scales(n: int, m: int, seed: int, scale: float) -> None:
    """It does not see where both sets lie and how they are turned, and grows as the square of their scale."""
    x, y = cloud(n, 4, seed), cloud(m, 4, seed + 1)
    turn = torch.linalg.qr(cloud(4, 4, seed + 2)).Q
    moved = frechet_distance(scale * (x @ turn) + 3, scale * (y @ turn) + 3)
    size = float(x.square().sum(1).max() + y.square().sum(1).max()) + 100
    assert moved == pytest.approx(scale**2 * frechet_distance(x, y), rel=1e-9, abs=1e-11 * scale**2 * size)


def test_frechet_is_symmetric() -> None:
    """Features and reference may be exchanged."""
    x, y = cloud(9, 4, 0), cloud(14, 4, 1)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=TOLERANCE)


@given(sizes, sizes, st.integers(1, 4), st.integers(0, 2**31))
def test_mmd_is_its_definition(n: int, m: int, d: int, seed: int) -> None:
    """The sum over pairs, without a row's pair with itself."""
    x, y = cloud(n, d, seed), cloud(m, d, seed + 1)
    largest = float((torch.cat([x, y]).square().sum(1).max() / d + 1) ** 3)
    assert polynomial_mmd(x, y) == pytest.approx(mmd_oracle(x, y), rel=TOLERANCE, abs=1e-12 * largest)


def test_mmd_has_no_bias() -> None:
    """Between samples of one distribution it is 0 on average, so below 0 as often as above."""
    x = cloud(400, 3, 0) / 3
    values = [polynomial_mmd(x[i : i + 4], x[i + 4 : i + 8]) for i in range(0, 400, 8)]
    spread = float(np.std(values) / np.sqrt(len(values)))
    assert min(values) < 0
    assert abs(np.mean(values)) < 3 * spread  # with the pairs i = j it would be off by more


@given(st.integers(1, 7))
def test_blocks_do_not_matter(block_rows: int) -> None:
    """Any block size gives the same distances."""
    x, y = cloud(13, 5, 0), cloud(9, 5, 1)
    assert polynomial_mmd(x, y, block_rows=block_rows) == pytest.approx(polynomial_mmd(x, y), rel=TOLERANCE)
    assert frechet_distance(x, y, block_rows=block_rows) == pytest.approx(
        frechet_distance(x, y), rel=TOLERANCE
    )


def test_a_subset_of_all_rows_is_the_whole() -> None:
    """Then each subset gives the same number and nothing varies."""
    x, y = cloud(8, 3, 0), cloud(8, 3, 1)
    found = kid(x, y, num_subsets=5)
    assert found.mean == pytest.approx(polynomial_mmd(x, y), rel=TOLERANCE)
    assert found.std == pytest.approx(0, abs=1e-9 * abs(found.mean))


def test_subsets_estimate_the_whole() -> None:
    """Their mean is the unbiased MMD² of all rows within four standard errors, and they vary."""
    x, y = cloud(60, 3, 0) / 2, cloud(50, 3, 1) / 2
    found = kid(x, y, subset_size=20, num_subsets=400)
    assert found.std > 0
    assert found.mean == pytest.approx(polynomial_mmd(x, y), abs=4 * found.std / 400**0.5)


def test_the_deviation_is_of_the_subsets() -> None:
    """Mean and deviation are those of one subset at a time, drawn by the same generator."""
    x, y = cloud(12, 3, 0), cloud(10, 3, 1)
    generator = torch.Generator().manual_seed(0)
    each = [kid(x, y, subset_size=6, num_subsets=1, generator=generator).mean for _ in range(7)]
    found = kid(x, y, subset_size=6, num_subsets=7)
    assert found == pytest.approx((np.mean(each), np.std(each)), rel=TOLERANCE)


def test_the_same_sets_give_the_same_number() -> None:
    """Without a generator the subsets are the same every time; with one they are its own."""
    x, y = cloud(12, 3, 0), cloud(10, 3, 1)
    assert kid(x, y, subset_size=4) == kid(x, y, subset_size=4)
    assert kid(x, y, subset_size=4) != kid(x, y, subset_size=4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("distance", [frechet_distance, polynomial_mmd, lambda x, y: kid(x, y).mean])
def test_half_precision_is_not_lost(distance) -> None:
    """fp16 features whose squares overflow fp16 give what they give as float64."""
    x, y = (40 * cloud(30, 6, seed) for seed in (0, 1))
    assert distance(x.half(), y.half()) == pytest.approx(distance(x.half().double(), y.half().double()))


@pytest.mark.parametrize("distance", [frechet_distance, polynomial_mmd, kid])
def test_what_has_no_distance_is_refused(distance) -> None:
    """Too few rows, NaN, infinity, and rows of another length."""
    x = cloud(5, 3, 0)
    with pytest.raises(InvalidArgument, match="at least 2 rows, got 1"):
        distance(x[:1], x)
    with pytest.raises(InvalidArgument, match="reference features need at least 2 rows, got 0"):
        distance(x, x[:0])
    with pytest.raises(InvalidArgument, match="NaN or infinity"):
        distance(x, torch.where(x == x[2, 1], torch.nan, x))
    with pytest.raises(InvalidArgument, match="NaN or infinity"):
        distance(x / 0, x)
    with pytest.raises((ShapeMismatch, TypeError)):
        distance(x, cloud(5, 4, 0))


@pytest.mark.parametrize("size", [1, 6])
def test_a_subset_fits(size: int) -> None:
    """One row has no pair, and a subset has no row twice."""
    with pytest.raises(InvalidArgument, match="2 to 5 rows"):
        kid(cloud(5, 3, 0), cloud(9, 3, 1), subset_size=size)
    with pytest.raises(InvalidArgument, match="at least one subset"):
        kid(cloud(5, 3, 0), cloud(9, 3, 1), num_subsets=0)
