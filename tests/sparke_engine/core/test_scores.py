"""Law 2: scores against a slow oracle that writes the definitions out, and their laws."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparke_engine.core.kernels import CosineKernel, GaussianKernel, Kernel
from sparke_engine.core.scores import cond_rke, cond_vendi, in_batch_similarity, rke, vendi
from sparke_engine.errors import InvalidArgument, ShapeMismatch

# Every score is a ratio or an exponential of sums of at most 144 float64 terms near 1, or of eigenvalues of a 12×12.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Cloud:
    """n features with prompts, and a kernel of each."""

    features: Tensor  # [n,d]
    prompts: Tensor  # [n,p]
    kernels: tuple[Kernel, Kernel]


def kernel_of(draw: st.DrawFn) -> Kernel:
    """Either kernel."""
    return draw(st.one_of(st.builds(GaussianKernel, st.floats(0.2, 2.0)), st.just(CosineKernel())))


@st.composite
def clouds(draw: st.DrawFn) -> Cloud:
    """Random clouds with duplicate and zero rows."""
    n, d, p = draw(st.integers(1, 12)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    features = torch.randn(n, d, generator=generator, dtype=torch.float64)
    prompts = torch.randn(n, p, generator=generator, dtype=torch.float64)
    for row in range(n):
        match draw(st.sampled_from(["fresh", "fresh", "duplicate", "zero"])):
            case "duplicate":
                features[row] = features[draw(st.integers(0, row))]
            case "zero":
                features[row] = 0
    return Cloud(features, prompts, (kernel_of(draw), kernel_of(draw)))


def oracle_value(kernel: Kernel, a: np.ndarray, b: np.ndarray) -> float:
    """k(a, b) by its definition."""
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if isinstance(kernel, GaussianKernel):
        a, b = a / (norm_a or 1.0), b / (norm_b or 1.0)
        return math.exp(-float(((a - b) ** 2).sum()) / (2 * kernel.bandwidth**2))
    if norm_a == 0 or norm_b == 0:
        return 1.0 if norm_a == norm_b else 0.0
    return float(a @ b) / (norm_a * norm_b)


def oracle_gram(kernel: Kernel, rows: Tensor) -> np.ndarray:
    """K entry by entry."""
    points = rows.double().numpy()
    return np.array([[oracle_value(kernel, a, b) for b in points] for a in points])


def oracle_entropy(gram: np.ndarray) -> float:
    """H₁ of a Gram matrix over its trace."""
    values = np.linalg.eigvalsh(gram / np.trace(gram))
    return -sum(float(value) * math.log(value) for value in values if value > 1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@given(cloud=clouds())
def test_scores_equal_the_oracle(dtype: torch.dtype, cloud: Cloud) -> None:
    """Every score is its definition on the numbers that it is given, to the rounding of float64 whatever their dtype."""
    cloud = replace(cloud, features=cloud.features.to(dtype), prompts=cloud.prompts.to(dtype))
    kernel, prompt_kernel = cloud.kernels
    of_features, of_prompts = oracle_gram(kernel, cloud.features), oracle_gram(prompt_kernel, cloud.prompts)
    n = len(of_features)
    assert rke(cloud.features, kernel) == pytest.approx(n**2 / (of_features**2).sum(), rel=TOLERANCE)
    assert cond_rke(cloud.features, cloud.prompts, cloud.kernels) == pytest.approx(
        (of_prompts**2).sum() / (of_prompts**2 * of_features**2).sum(), rel=TOLERANCE
    )
    assert vendi(cloud.features, kernel) == pytest.approx(
        math.exp(oracle_entropy(of_features)), rel=TOLERANCE
    )
    expected = math.exp(oracle_entropy(of_features * of_prompts) - oracle_entropy(of_prompts))
    assert cond_vendi(cloud.features, cloud.prompts, cloud.kernels) == pytest.approx(expected, rel=TOLERANCE)
    off_diagonal = (of_features.sum() - n) / (n * (n - 1)) if n > 1 else 0.0
    assert in_batch_similarity(cloud.features, kernel) == pytest.approx(
        off_diagonal, rel=TOLERANCE, abs=TOLERANCE
    )


@given(clouds())
def test_scores_are_counts(cloud: Cloud) -> None:
    """1 ≤ score ≤ n."""
    n = cloud.features.shape[0]
    scores = [
        rke(cloud.features, cloud.kernels[0]),
        vendi(cloud.features, cloud.kernels[0]),
        cond_rke(cloud.features, cloud.prompts, cloud.kernels),
        cond_vendi(cloud.features, cloud.prompts, cloud.kernels),
    ]
    for score in scores:
        assert 1 - TOLERANCE <= score <= n + TOLERANCE


@given(clouds(), st.integers(1, 9))
def test_duplicates_count_once(cloud: Cloud, copies: int) -> None:
    """Any number of duplicates of one row score 1, also of a zero row."""
    kernel, _ = cloud.kernels
    same = cloud.features[:1].expand(copies, -1)
    prompts = cloud.prompts[:1].expand(copies, -1)
    assert rke(same, kernel) == pytest.approx(1, rel=TOLERANCE)
    assert vendi(same, kernel) == pytest.approx(1, rel=TOLERANCE)
    assert cond_rke(same, prompts, cloud.kernels) == pytest.approx(1, rel=TOLERANCE)
    assert cond_vendi(same, prompts, cloud.kernels) == pytest.approx(1, rel=TOLERANCE)
    assert in_batch_similarity(same, kernel) == pytest.approx(1 if copies > 1 else 0, rel=TOLERANCE)


@given(clouds(), st.randoms(use_true_random=False), st.floats(0.01, 100))
def test_order_and_scale_do_not_matter(cloud: Cloud, random: object, scale: float) -> None:
    """Scores are invariant under permutation of the rows and under scale."""
    order = list(range(cloud.features.shape[0]))
    random.shuffle(order)
    moved, prompts = cloud.features[order] * scale, cloud.prompts[order]
    kernel, _ = cloud.kernels
    assert rke(moved, kernel) == pytest.approx(rke(cloud.features, kernel), rel=TOLERANCE)
    assert vendi(moved, kernel) == pytest.approx(vendi(cloud.features, kernel), rel=TOLERANCE)
    for conditional in (cond_rke, cond_vendi):
        before = conditional(cloud.features, cloud.prompts, cloud.kernels)
        assert conditional(moved, prompts, cloud.kernels) == pytest.approx(before, rel=TOLERANCE)


@given(clouds())
def test_cond_rke_is_joint_over_prompt(cloud: Cloud) -> None:
    """Cond-RKE is the RKE of the product kernel over the RKE of the prompts."""
    kernel, prompt_kernel = cloud.kernels
    joint = oracle_gram(kernel, cloud.features) * oracle_gram(prompt_kernel, cloud.prompts)
    expected = len(joint) ** 2 / (joint**2).sum() / rke(cloud.prompts, prompt_kernel)
    assert cond_rke(cloud.features, cloud.prompts, cloud.kernels) == pytest.approx(expected, rel=TOLERANCE)


@given(clouds(), st.integers(1, 5))
def test_blocks_do_not_matter(cloud: Cloud, block_rows: int) -> None:
    """Any block size gives the same score."""
    kernel, _ = cloud.kernels
    assert rke(cloud.features, kernel, block_rows=block_rows) == pytest.approx(rke(cloud.features, kernel))
    assert in_batch_similarity(cloud.features, kernel, block_rows=block_rows) == pytest.approx(
        in_batch_similarity(cloud.features, kernel)
    )
    assert cond_rke(cloud.features, cloud.prompts, cloud.kernels, block_rows=block_rows) == pytest.approx(
        cond_rke(cloud.features, cloud.prompts, cloud.kernels)
    )


@pytest.mark.parametrize("bandwidth", [0.5, 0.05, 0.01])
def test_a_narrow_kernel_keeps_within_bounds(bandwidth: float) -> None:
    """In fp32 too: 300 copies are one mode, no more than 300 rows count, and no similarity is below 0."""
    rows, kernel = torch.randn(300, 64, generator=torch.Generator().manual_seed(0)), GaussianKernel(bandwidth)
    kernels, prompts = (kernel, kernel), torch.ones(300, 2)
    copies = rows[:1].expand(300, -1)
    for score in (
        rke(copies, kernel),
        vendi(copies, kernel),
        cond_rke(copies, prompts, kernels),
        in_batch_similarity(copies, kernel),
    ):
        assert score == pytest.approx(1, rel=1e-9)
    assert rke(rows, kernel) <= 300
    assert cond_rke(rows, prompts, kernels) <= 300
    assert vendi(rows, kernel) <= 300 * (1 + 1e-12)
    assert in_batch_similarity(rows, kernel) >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", [GaussianKernel(0.5), CosineKernel()])
def test_no_scale_is_too_small_or_great(kernel: Kernel, dtype: torch.dtype) -> None:
    """Where squares under- or overflow the scores are the same: only directions count."""
    rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=dtype)
    kernels, prompts = (kernel, kernel), rows.flip(1)
    scales = (1e-24, 1e-22, 1e20, 1e30) if dtype == torch.float32 else (1e-300, 1e-200, 1e200, 1e300)
    for scale in scales:
        scaled, scaled_prompts = scale * rows, scale * prompts
        for score in (rke, vendi, in_batch_similarity):
            assert score(scaled, kernel) == pytest.approx(
                score(rows, kernel), rel=1e-5
            )  # fp32 rounds the rows anew
        for score in (cond_rke, cond_vendi):
            assert score(scaled, scaled_prompts, kernels) == pytest.approx(
                score(rows, prompts, kernels), rel=1e-5
            )


def test_distinct_rows_count_each() -> None:
    """Orthogonal rows under the cosine kernel are n modes for every score."""
    rows, kernels = torch.eye(7), (CosineKernel(), CosineKernel())
    same_prompt = torch.ones(7, 2)
    assert rke(rows, kernels[0]) == pytest.approx(7)
    assert vendi(rows, kernels[0]) == pytest.approx(7)
    assert cond_rke(rows, same_prompt, kernels) == pytest.approx(7)
    assert cond_vendi(rows, same_prompt, kernels) == pytest.approx(7)
    assert in_batch_similarity(rows, kernels[0]) == 0


def test_an_empty_set_has_no_score() -> None:
    """No rows, no score."""
    with pytest.raises(InvalidArgument, match="at least one row"):
        rke(torch.zeros(0, 3), CosineKernel())


def test_prompts_must_match_features() -> None:
    """A conditional score refuses another number of prompts."""
    with pytest.raises((ShapeMismatch, TypeError)):
        cond_rke(torch.ones(3, 2), torch.ones(2, 2), (CosineKernel(), CosineKernel()))
