"""The gradient of a latent's similarity to a set of entries, in closed form.

With f = φ(z)/‖φ(z)‖ for a linear φ, entries f_j with weights a_j that do not depend on z (prompt kernel, mask,
sampling weight), and w_j = a_j k_Z(f, f_j)^p:

    ∇_z Σ_j w_j = (p/σ_Z²) · φᵀ (I − f fᵀ) D / ‖φ(z)‖,    D = Σ_j w_j (f_j − f)

because ∇_f k_Z^p = (p/σ_Z²) k_Z^p (f_j − f) and ∂f/∂φ(z) = (I − f fᵀ)/‖φ(z)‖, which annihilates f. Two products of
a vector and a matrix: O(k·d) a latent, no autograd, no k×k matrix. p = 2 is Algorithm 1 of arXiv 2506.10173.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.kernels import GaussianPower, unit
from sparke_engine.types import Neighbours


class Field(NamedTuple):
    """What the entries do to each point: `direction` D = Σ_j w_j (f_j − f) toward them, `mass` m = Σ_j |w_j|.

    2m bounds ‖D‖ where entries are unit vectors. `num_entries` terms are in each sum, which bounds their rounding. Fields of disjoint sets of entries add. What the point and all entries
    share cancels in D; in its part along the sphere, `tangent(D, f)`, some of it comes back.
    """

    direction: Float[Tensor, "*b n d"]
    mass: Float[Tensor, "*b n"]
    num_entries: int

    def plus(self, other: "Field") -> "Field":
        """The field of both sets of entries together."""
        return Field(
            self.direction + other.direction, self.mass + other.mass, self.num_entries + other.num_entries
        )


def entry_weights(
    neighbours: Neighbours,
    prompt_embeddings: Float[Tensor, "b p"],
    kernel: GaussianPower,
) -> Float[Tensor, "b k"]:
    """a_j = weight_j · k_Y(y, y_j)^p for `kernel` = k_Y^p, and 0 where the entry is masked. O(b·k·p)."""
    entries = torch.where(neighbours.mask[..., None], neighbours.prompt_embeddings, 0.0)
    entries = entries.to(prompt_embeddings.dtype)
    values = kernel.gram(prompt_embeddings[:, None], entries)[:, 0]
    return torch.where(neighbours.mask, values * neighbours.weights, 0.0).to(values.dtype)


def kernel_field(
    features: Float[Tensor, "*b n d"],
    entries: Float[Tensor, "*b k d"],
    weights: Float[Tensor, "*b #n k"],
    kernel: GaussianPower,
) -> Field:
    """D = Σ_j w_j (f_j − f) and m = Σ_j |w_j| for each of n unit features that share k entries.

    An entry of weight 0 may hold anything finite. Keeps the dtype. O(n·k·d). Degenerate cases: without entries
    (k = 0) both are zero; at an entry itself D's term of it is zero up to rounding of order ε·|w_j|.
    """
    weights = weights * kernel.gram(features, entries)
    direction = weights @ entries - weights.sum(-1, keepdim=True) * features
    return Field(direction, weights.abs().sum(-1), entries.shape[-2])


def mutual_field(features: Float[Tensor, "*b n d"], kernel: GaussianPower) -> Field:
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
    kernel: GaussianPower,
) -> Float[Tensor, "*b n d"]:
    """∇ Σ_j w_j with respect to φ(z) = `mapped`: (p/σ_Z²) · (I − f fᵀ) D / ‖φ(z)‖; pull it back to z with φᵀ.

    Degenerate case: 0 at φ(z) = 0, where the feature has no direction to turn.
    """
    norm = torch.linalg.vector_norm(mapped, dim=-1, keepdim=True)
    features = unit(mapped)
    direction = tangent(kernel_field(features, entries, weights, kernel).direction, features)
    scaled = (kernel.power / kernel.bandwidth**2) * direction / torch.where(norm > 0, norm, 1.0)
    return torch.where(norm > 0, scaled, 0.0)
