"""The gradient of the von Neumann entropy of moving points and entries, through the spectrum.

The points and entries i, each counted c_i times, have the density matrix ρ_ij = √(q_i q_j) K_ij with q = c/Σc
and K = K_Z ∘ K_Y; counts of 1 give K/n, and a count of 2 the spectrum of the entry twice. H₁ = −tr ρ log ρ is
log Vendi for K_Y = 1; else it is log Cond-Vendi plus H₁(K_Y/n), which no latent moves. Since
∂H₁/∂ρ = −(log ρ + I) and K_ii = 1,

    ∇_{f_i} H₁ = −2 q_i γ D_i,    D_i = Σ_{j≠i} w_ij f_j,    w_ij = √(q_j/q_i) (log ρ)_ij k_Y(i,j) s_ij

up to a part along f_i, with the pull s and the steepness γ of k_Z (`kernels.KernelPower`). log ρ is a
function of the matrix: it is smooth where eigenvalues repeat, and no derivative of an eigenvector is taken.
Far entries of count 1 have w_ij → k_Y² k_Z s_ij, which is what Cond-IRKE (p = 2) has for them: the two
objectives agree there, and so do their scales.

Where the spectrum touches 0 (duplicates, more entries than dimensions), log λ is log max(λ, τ), τ = ε·N for N
points in all. An eigenvector v of eigenvalue λ adds log λ · v_i · Σ_j v_j √q_j ∇k(i,j) to D_i, and the sum is
at most a constant times √λ, as it is a scalar product with Σ_j √q_j v_j ψ_j of norm √λ in the kernel's own
space. So what the floor changes is below √τ |log τ| / √q_i: D_i is continuous, and exact but for that. At a
duplicate of f_i the weight grows like log of the distance and its chord shrinks like the distance: no push,
as for any kernel.

Sums and spectrum are in float64 whatever the input. Sources: arXiv 2506.10173; Friedman and Dieng, arXiv
2210.02410.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.gradients import Field, of_mapped, tangent
from sparke_engine.core.kernels import CosinePower, KernelPower, unit

_EPS = torch.finfo(torch.float64).eps


class Population(NamedTuple):
    """k entries that moving points are to differ from, and how all prompts resemble one another.

    `counts` are not negative; an entry of count 0 is absent and may hold anything finite. The n moving points
    count 1. `prompt_gram` is K_Y over the moving points and then the entries, [n+k,n+k] with a diagonal of
    ones; None is 1.
    """

    entries: Float[Tensor, "*b k d"]
    counts: Float[Tensor, "*b k"]
    prompt_gram: Float[Tensor, "*b m m"] | None = None


def entropy_field(features: Float[Tensor, "*b n d"], population: Population, kernel: KernelPower) -> Field:
    """The field whose reverse raises H₁ of all n unit features and the population together; `kernel` is k_Z itself.

    Each feature's direction holds the others fixed: one spectrum for all n. For the Gaussian kernel the
    direction is Σ_j w_ij (f_j − f_i), the gradient in the space around the sphere; chords to what the points
    share cancel. For the cosine kernel it is (I − f fᵀ) Σ_j w_ij f_j: where there are more points than
    dimensions only this part is defined, the weights one by one are not. m = Σ_j c_j K_ij², the nearness of
    IRKE at p = 2. Computed in float64, given in the dtype of `features`. O((n+k)³), or O((n+k)·d²) for the
    cosine kernel with K_Y = 1 and d < n+k. Degenerate cases: D = 0 alone, without present entries, and where
    all coincides.
    """
    n = features.shape[-2]
    rows = unit(
        torch.cat([features, population.entries], dim=-2).double()
    )  # K_ii = 1 beyond the caller's precision; 0 for a zero row and the cosine kernel, to which nothing is near
    ones = rows.new_ones(*rows.shape[:-2], n)
    counts = torch.cat([ones, population.counts.double()], dim=-1)
    values, pulls = kernel.values_and_pulls(rows, rows)
    if population.prompt_gram is not None:
        prompt_gram = population.prompt_gram.double()
        values, pulls = values * prompt_gram, pulls * prompt_gram
    is_other = 1.0 - torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device)[:n]
    near = values[..., :n, :].square() * is_other
    nearness = (near * counts[..., None, :]).sum(-1)
    if isinstance(kernel, CosinePower):
        if kernel.power == 1 and population.prompt_gram is None and rows.shape[-1] < rows.shape[-2]:
            direction = _logarithm_of_features(rows, counts, n)
        else:
            direction = (_weights(values, counts, n) * pulls[..., :n, :] * is_other) @ rows
        direction = tangent(direction, rows[..., :n, :])
        mass = torch.full_like(nearness, -math.log(_floor(rows)))
    else:
        weights = _weights(values, counts, n) * pulls[..., :n, :] * is_other
        direction = weights @ rows - weights.sum(-1, keepdim=True) * rows[..., :n, :]
        mass = weights.abs().sum(-1)
    direction, mass, nearness = (part.to(features.dtype) for part in (direction, mass, nearness))
    return Field(direction, mass, nearness, rows.shape[-2])


def entropy_gradient(
    mapped: Float[Tensor, "*b n d"], population: Population, kernel: KernelPower
) -> Float[Tensor, "*b n d"]:
    """∇H₁ with respect to φ(z) = `mapped`: −2 q_i γ (I − f fᵀ) D_i / ‖φ(z)‖, 0 at φ(z) = 0; pull it back to z with φᵀ."""
    field = entropy_field(unit(mapped), population, kernel)
    total = mapped.shape[-2] + population.counts.sum(-1)[..., None, None]
    return -2 * kernel.steepness / total * of_mapped(field.direction, mapped)


def _weights(values: Tensor, counts: Tensor, n: int) -> Float[Tensor, "*b n m"]:
    """√(q_j/q_i) (log ρ)_ij for the first n rows i, which count 1; off the diagonal."""
    roots = counts.sqrt()
    density = values * roots[..., :, None] * roots[..., None, :] / counts.sum(-1)[..., None, None]
    eigenvalues, vectors = _spectrum(density)
    logs = eigenvalues.clamp_min(_floor(values)).log()
    return (vectors[..., :n, :] * logs[..., None, :]) @ vectors.mT * roots[..., None, :]


def _logarithm_of_features(rows: Tensor, counts: Tensor, n: int) -> Float[Tensor, "*b n d"]:
    """(log R) f_i for R = Σ_j q_j f_j f_jᵀ: the same Σ_j √(q_j/q_i) (log ρ)_ij f_j, j = i included, by R's [d,d]."""
    shares = (counts / counts.sum(-1, keepdim=True))[..., :, None]
    eigenvalues, vectors = _spectrum((shares * rows).mT @ rows)
    logs = eigenvalues.clamp_min(_floor(rows)).log()
    return (rows[..., :n, :] @ vectors * logs[..., None, :]) @ vectors.mT


def _spectrum(density: Float[Tensor, "*b m m"]) -> tuple[Float[Tensor, "*b m"], Float[Tensor, "*b m m"]]:
    """Eigenvalues and eigenvectors; of a matrix that is not finite, which the solver refuses, eigenvalues of NaN."""
    is_finite = density.isfinite().all(-1).all(-1)
    known = torch.where(is_finite[..., None, None], (density + density.mT) / 2, 0.0)
    eigenvalues, vectors = torch.linalg.eigh(known)
    return torch.where(is_finite[..., None], eigenvalues, torch.nan), vectors


def _floor(rows: Float[Tensor, "*b m d"]) -> float:
    """τ = ε·m, the error of an eigenvalue of a matrix [m,m] of trace 1."""
    return _EPS * rows.shape[-2]
