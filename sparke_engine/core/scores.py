"""Diversity scores: effective counts of modes, from 1 (all equal) to n (all different).

With Gram matrices K of kernels that have k(x, x) = 1, and H₁ the von Neumann entropy −Σ λ log λ:

    RKE         n² / Σ K_Z²                               exp of the Rényi entropy of order 2 of K_Z/n
    Cond-RKE    Σ K_Y² / Σ K_Y² K_Z²                      RKE of (prompt, image) over RKE of the prompt
    Vendi       exp H₁(K_Z/n)
    Cond-Vendi  exp(H₁(K_Z ∘ K_Y / n) − H₁(K_Y/n))

Kernels and sums are in float64 whatever the input, from the rows' directions at any scale, and k(x, x) is 1: in single
precision rounding would take RKE above n under a narrow kernel. A copy of the rows in float64 is made. Rows that are none, not finite or not paired
raise InvalidArgument. Sources: arXiv 2506.10173; Friedman and Dieng, arXiv 2210.02410 (Vendi).
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.domains import check_pair
from sparke_engine.core.kernels import CosineKernel, Kernel, check_kernel, exact_unit
from sparke_engine.core.rows import BLOCK_ROWS, num_rows, row_blocks, same_number


def rke(features: Float[Tensor, "n d"], kernel: Kernel, *, block_rows: int = BLOCK_ROWS) -> float:
    """RKE = n² / Σ_ij k_Z(i,j)². O(n²·d) time, O(block_rows·n) memory."""
    n = _count(features)
    total = sum(_sum(gram.square()) for gram in _gram_blocks(features, kernel, block_rows))
    return n**2 / total


def cond_rke(
    features: Float[Tensor, "n d"],
    prompt_embeddings: Float[Tensor, "n p"],
    kernels: tuple[Kernel, Kernel],
    *,
    block_rows: int = BLOCK_ROWS,
) -> float:
    """Cond-RKE = Σ k_Y² / Σ k_Y² k_Z², `kernels` = (k_Z, k_Y). O(n²·(d+p)) time, O(block_rows·n) memory."""
    _count(features, prompt_embeddings)
    kernel, prompt_kernel = _pair(kernels)
    of_prompts, joint = 0.0, 0.0
    pairs = zip(
        _gram_blocks(features, kernel, block_rows),
        _gram_blocks(prompt_embeddings, prompt_kernel, block_rows),
        strict=True,
    )
    for gram, prompt_gram in pairs:
        squared = prompt_gram.square()
        of_prompts += _sum(squared)
        joint += _sum(squared * gram.square())
    return of_prompts / joint


def vendi(features: Float[Tensor, "n d"], kernel: Kernel) -> float:
    """Vendi = exp H₁(K_Z/n), by eigenvalues: O(n³), or O(n·d²) where the kernel is cosine and d < n."""
    _count(features)
    return float(torch.exp(_entropy_of(features, kernel)))


def cond_vendi(
    features: Float[Tensor, "n d"],
    prompt_embeddings: Float[Tensor, "n p"],
    kernels: tuple[Kernel, Kernel],
) -> float:
    """Cond-Vendi = exp(H₁(K_Z ∘ K_Y / n) − H₁(K_Y/n)), `kernels` = (k_Z, k_Y). O(n³)."""
    n = _count(features, prompt_embeddings)
    kernel, prompt_kernel = _pair(kernels)
    joint = _gram(features, kernel) * _gram(prompt_embeddings, prompt_kernel)
    return float(torch.exp(_entropy(joint / n) - _entropy_of(prompt_embeddings, prompt_kernel)))


def in_batch_similarity(
    features: Float[Tensor, "n d"], kernel: Kernel, *, block_rows: int = BLOCK_ROWS
) -> float:
    """The mean of k_Z(i,j) over i ≠ j. O(n²·d) time, O(block_rows·n) memory.

    Degenerate case: 0 for a single row, which resembles nothing.
    """
    n = _count(features)
    if n == 1:
        return 0.0
    total = sum(_sum(gram) for gram in _gram_blocks(features, kernel, block_rows))
    return (total - n) / (n * (n - 1))


def _count(features: Tensor, *paired: Tensor) -> int:
    n = num_rows(features, "features")
    for prompt_embeddings in paired:
        num_rows(prompt_embeddings, "prompt embeddings")
        same_number(features, prompt_embeddings, ("features", "prompt embeddings"))
    return n


def _pair(kernels: tuple[Kernel, Kernel]) -> tuple[Kernel, Kernel]:
    check_pair("kernels are", kernels, "(k_Z, k_Y)")
    for kernel in kernels:
        check_kernel(kernel)
    return kernels


def _gram_blocks(rows: Tensor, kernel: Kernel, block_rows: int) -> Iterator[Tensor]:
    """K in float64, some rows at a time, with a diagonal of ones."""
    check_kernel(kernel)
    directions, start = exact_unit(rows), 0
    for block in row_blocks(directions, block_rows):
        gram = kernel.gram(block, directions)
        gram.diagonal(start).fill_(1.0)
        yield gram
        start += len(block)


def _gram(rows: Tensor, kernel: Kernel) -> Tensor:
    (gram,) = _gram_blocks(rows, kernel, len(rows))
    return gram


def _sum(values: Tensor) -> float:
    return float(values.sum())


def _entropy_of(rows: Tensor, kernel: Kernel) -> Tensor:
    """H₁(K/n). The nonzero eigenvalues of ΨΨᵀ/n are those of ΨᵀΨ/n, which is smaller where d < n."""
    n, d = rows.shape
    if isinstance(kernel, CosineKernel) and d < n:
        mapped = kernel.feature_map(exact_unit(rows))
        return _entropy(mapped.mT @ mapped / n)
    return _entropy(_gram(rows, kernel) / n)


def _entropy(density: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """−Σ λ log λ with 0 log 0 = 0; eigenvalues that rounding made negative count as 0."""
    eigenvalues = torch.linalg.eigvalsh((density + density.mT) / 2).clamp_min(0)
    return -torch.xlogy(eigenvalues, eigenvalues).sum()
