"""How far features are from a reference as distributions: Fréchet distance and kernel distance (KID).

With the pooled features of InceptionV3 they are FID and KID. Own formulas: what libraries have (torchmetrics,
torch-fidelity) are stateful modules over images, bound to a network, not functions of features.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.rows import BLOCK_ROWS, num_rows, row_blocks, same_length
from sparke_engine.errors import InvalidArgument

SUBSET_SIZE = 1000


def frechet_distance(
    features: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], *, block_rows: int = BLOCK_ROWS
) -> float:
    """‖μ − μ′‖² + tr(Σ + Σ′ − 2(ΣΣ′)^½), the squared Wasserstein-2 distance of the two fitted Gaussians.

    With Σ = RᵀR and Σ′ = R′ᵀR′ from QR of the centred rows, tr (ΣΣ′)^½ is the sum of the singular values of
    RR′ᵀ: no covariance is formed and no root of a number that rounding may have made negative, so equal sets
    give 0 to 1e-13 of tr Σ also where Σ is singular. Covariances are the unbiased ones, /(n − 1). Float64;
    O((n+m)·d² + d³) time, O((block_rows+d)·d) memory. Degenerate cases: two rows are needed in each set. With
    n ≤ d the covariance is singular; that is allowed, but the distance is biased upward by O(1/n) whatever n
    is, so compare sets of one size. Source: Dowson and Landau 1982; Heusel et al. 2017, arXiv 1706.08500.
    """
    _check_pair(features, reference)
    mean, root = _gaussian(features, block_rows)
    other_mean, other_root = (part.to(mean.device) for part in _gaussian(reference, block_rows))
    gap = (mean - other_mean).square().sum()
    spread = root.square().sum() + other_root.square().sum()
    overlap = torch.linalg.svdvals(root @ other_root.mT).sum()
    return max(float(gap + spread - 2 * overlap), 0.0)


def polynomial_mmd(
    features: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], *, block_rows: int = BLOCK_ROWS
) -> float:
    """The unbiased MMD² of all rows under k(x, y) = (x·y/d + 1)³.

    Σ_{i≠j} k(x_i,x_j)/n(n−1) + Σ_{i≠j} k(y_i,y_j)/m(m−1) − 2 Σ_ij k(x_i,y_j)/nm; below 0 by chance where the
    sets are alike. Float64; O((n+m)²·d) time, O(block_rows·(n+m)) memory. Degenerate case: two rows are
    needed in each set. Source: Gretton et al. 2012, eq. 3; Bińkowski et al. 2018, arXiv 1801.01401.
    """
    _check_pair(features, reference)
    x, y = features.double(), reference.double().to(features.device)
    n, m = x.shape[0], y.shape[0]
    within = _kernel_sum(x, x, block_rows) - float(_cubic(x.square().sum(1), x.shape[1]).sum())
    within_reference = _kernel_sum(y, y, block_rows) - float(_cubic(y.square().sum(1), y.shape[1]).sum())
    across = _kernel_sum(x, y, block_rows)
    return within / (n * (n - 1)) + within_reference / (m * (m - 1)) - 2 * across / (n * m)


class KernelDistance(NamedTuple):
    """Mean and standard deviation (of the population, not of the mean) of MMD² over subsets."""

    mean: float
    std: float


def kid(
    features: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    *,
    subset_size: int | None = None,
    num_subsets: int = 100,
    generator: torch.Generator | None = None,
) -> KernelDistance:
    """`polynomial_mmd` of `num_subsets` random pairs of subsets: its mean, and how much it varies.

    Each pair is `subset_size` rows of either set without repetition; None: 1,000, or all rows of the smaller
    set. The mean estimates the same number as `polynomial_mmd`, without bias. `generator` is on the CPU;
    None: seed 0, so that the same sets give the same number. Float64; O(num_subsets · subset_size² · d).
    Degenerate cases: a subset has at least two rows and at most as many as there are; where it is all rows of
    both sets, every subset is the same and the deviation is 0 but for rounding. Source: Bińkowski et al. 2018, arXiv
    1801.01401.
    """
    _check_pair(features, reference)
    fewest = min(features.shape[0], reference.shape[0])
    size = min(SUBSET_SIZE, fewest) if subset_size is None else subset_size
    if not 2 <= size <= fewest:
        raise InvalidArgument(f"a subset has 2 to {fewest} rows, all of the smaller set, got {size}")
    if num_subsets < 1:
        raise InvalidArgument(f"at least one subset is needed, got {num_subsets}")
    drawing = torch.Generator().manual_seed(0) if generator is None else generator
    values = []
    for _ in range(num_subsets):
        own, other = (torch.randperm(len(rows), generator=drawing)[:size] for rows in (features, reference))
        values.append(
            polynomial_mmd(features[own.to(features.device)], reference[other.to(reference.device)])
        )
    found = torch.tensor(values, dtype=torch.float64)
    return KernelDistance(float(found.mean()), float(found.std(correction=0)))


def _check_pair(features: Tensor, reference: Tensor) -> None:
    num_rows(features, "features", least=2)
    num_rows(reference, "reference features", least=2)
    same_length(features, reference, ("features", "reference features"))


def _gaussian(rows: Tensor, block_rows: int) -> tuple[Float[Tensor, " d"], Float[Tensor, "r d"]]:
    """Mean and a root R of the unbiased covariance RᵀR, by QR of block upon block."""
    n, d = rows.shape
    mean = torch.stack([block.double().sum(0) for block in row_blocks(rows, block_rows)]).sum(0) / n
    root = mean.new_zeros(0, d)
    for block in row_blocks(rows, max(block_rows, d)):
        root = torch.linalg.qr(torch.cat([root, block.double() - mean]), mode="r").R
    return mean, root / math.sqrt(n - 1)


def _kernel_sum(x: Tensor, y: Tensor, block_rows: int) -> float:
    return sum(float(_cubic(block @ y.mT, y.shape[1]).sum()) for block in row_blocks(x, block_rows))


def _cubic(products: Tensor, d: int) -> Tensor:
    """(x·y/d + 1)³."""
    return (products / d + 1) ** 3
