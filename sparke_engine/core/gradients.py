"""The gradient of a latent's similarity to a set of entries, in closed form.

With f = φ(z)/‖φ(z)‖ for a linear φ, entries f_j with weights a_j that do not depend on z (prompt kernel,
mask, sampling weight), a kernel whose power k_Z^p has the pull s and the steepness γ (`kernels.KernelPower`),
w_j = a_j s_j:

    ∇_z Σ_j a_j k_Z(f, f_j)^p = γ · φᵀ (I − f fᵀ) D / ‖φ(z)‖,    D = Σ_j w_j (f_j − f)

because ∇_f k_Z^p = γ s_j f_j and ∂f/∂φ(z) = (I − f fᵀ)/‖φ(z)‖, which annihilates f. Two products of a vector
and a matrix: O(k·d) a latent, no autograd, no k×k matrix. Gaussian: w_j = a_j k_Z^p, γ = p/σ_Z²; p = 2 is
Algorithm 1 of arXiv 2506.10173. Cosine, c_j = f·f_j: w_j = a_j c_j^(p−1), γ = p.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.half import HalfRows, weighted_sums
from sparke_engine.core.kernels import KernelPower, unit
from sparke_engine.types import Neighbours


class Field(NamedTuple):
    """What the entries do to each point.

    `direction` D points toward them; for a similarity, D = Σ_j w_j (f_j − f). `mass` is the scale of D: it
    bounds ‖D‖/2, and ε·mass what rounding does to D; for a similarity, Σ_j |w_j|. `nearness` m tells how much
    is near, 0 where nothing is: Σ_j |a_j| max(k^p, 0). Between Gaussian kernels it is the mass. `num_entries`
    terms are in each sum, which bounds their rounding. Fields of disjoint sets of entries add. What the point
    and all entries share cancels in chords f_j − f; in their part along the sphere, `tangent(D, f)`, some of
    it comes back.
    """

    direction: Float[Tensor, "*b n d"]
    mass: Float[Tensor, "*b n"]
    nearness: Float[Tensor, "*b n"]
    num_entries: int

    def plus(self, other: "Field") -> "Field":
        """The field of both sets of entries together."""
        return Field(
            self.direction + other.direction,
            self.mass + other.mass,
            self.nearness + other.nearness,
            self.num_entries + other.num_entries,
        )

    def reversed(self) -> "Field":
        """The field of the same entries where they attract in place of repelling, or the other way round."""
        return self._replace(direction=-self.direction)


def entry_weights(
    neighbours: Neighbours,
    prompt_embeddings: Float[Tensor, "b p"],
    kernel: KernelPower,
) -> Float[Tensor, "b k"]:
    """a_j = weight_j · k_Y(y, y_j)^p for `kernel` = k_Y^p, and 0 where the entry is masked. O(b·k·p)."""
    entries = neighbours.prompt_embeddings
    if not bool(neighbours.mask.all()):
        entries = torch.where(neighbours.mask[..., None], entries, 0.0)
    entries = entries.to(prompt_embeddings.dtype)
    values = kernel.gram(prompt_embeddings[:, None], entries)[:, 0]
    return torch.where(neighbours.mask, values * neighbours.weights, 0.0).to(values.dtype)


def kernel_field(
    features: Float[Tensor, "*b n d"],
    entries: Float[Tensor, "*b k d"] | HalfRows,
    weights: Float[Tensor, "*b #n k"],
    kernel: KernelPower,
) -> Field:
    """D = Σ_j w_j (f_j − f) with w_j = a_j s_j, for each of n unit features that share k entries of `weights` a.

    An entry of weight 0 may hold anything finite. Keeps the dtype of `features`. O(n·k·d); entries in half
    precision are read twice and nothing of their size is made (see `half.py`). Degenerate cases: without
    entries (k = 0) all is zero; at an entry itself D's term of it is zero up to rounding of order ε·|w_j|.
    """
    values, pulls = kernel.values_and_pulls(features, entries)
    pulled = weights * pulls
    direction = weighted_sums(pulled, entries) - pulled.sum(-1, keepdim=True) * features
    mass = pulled.abs().sum(-1)
    nearness = mass if pulls is values else (weights.abs() * values.clamp_min(0)).sum(-1)
    return Field(direction, mass, nearness, weights.shape[-1])


def mutual_field(features: Float[Tensor, "*b n d"], kernel: KernelPower) -> Field:
    """The field of each feature's fellows: the other n − 1, each of weight 1, taken as fixed. O(n²·d)."""
    n = features.shape[-2]
    others = 1.0 - torch.eye(n, dtype=features.dtype, device=features.device)
    return kernel_field(features, features, others.expand(*features.shape[:-1], n), kernel)


def tangent(vectors: Float[Tensor, "*b d"], features: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """(I − f fᵀ) v for unit f; v where f is zero."""
    return vectors - features * (vectors * features).sum(-1, keepdim=True)


def similarity_gradient(
    mapped: Float[Tensor, "*b n d"],
    entries: Float[Tensor, "*b k d"],
    weights: Float[Tensor, "*b #n k"],
    kernel: KernelPower,
) -> Float[Tensor, "*b n d"]:
    """∇ Σ_j a_j k_Z^p with respect to φ(z) = `mapped`: γ · (I − f fᵀ) D / ‖φ(z)‖; pull it back to z with φᵀ.

    Degenerate case: 0 at φ(z) = 0, where the feature has no direction to turn.
    """
    features = unit(mapped)
    return kernel.steepness * of_mapped(kernel_field(features, entries, weights, kernel).direction, mapped)


def of_mapped(vectors: Float[Tensor, "*b d"], mapped: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """(I − f fᵀ) v / ‖φ(z)‖: a gradient v with respect to f as one with respect to φ(z) = `mapped`; 0 at φ(z) = 0."""
    norm = torch.linalg.vector_norm(mapped, dim=-1, keepdim=True)
    turned = tangent(vectors, unit(mapped)) / torch.where(norm > 0, norm, 1.0)
    return torch.where(norm > 0, turned, 0.0)
