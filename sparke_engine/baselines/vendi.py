"""Latent Vendi guidance: up the gradient of the Vendi score of memory and current images, in feature space."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.baselines.rival import Rival, Seen, check_not_negative, check_positive
from sparke_engine.core.gradients import tangent
from sparke_engine.errors import InvalidArgument
from sparke_engine.guidance.push import Entries, scaled
from sparke_engine.guidance.schedule import window_weight

LEAST_SLOPE = (
    1e-5  # of ‖(log ρ) f‖ across f: below that, all that is near coincides and fp32 features leave rounding
)


def entropy_slope(
    features: Float[Tensor, "n d"], entries: Float[Tensor, "k d"], weights: Float[Tensor, " k"]
) -> Float[Tensor, "n d"]:
    """−(I − ffᵀ)(log ρ) f: the gradient of H₁(ρ) = −tr ρ log ρ by each of n unit features f, over 2/(n + Σa).

    ρ = Σ_i p_i f_i f_iᵀ over the n features, of weight 1, and the k entries, of weight a_j; p the weights over their sum.
    exp H₁(ρ) is the Vendi score of the cosine kernel with these probabilities. From dH₁ = −tr (log ρ + I) dρ.
    Through the eigenvectors of ρ, or of the Gram matrix where that is smaller; a matrix function, so eigenvalues may repeat.
    Directions that ρ lacks hold no part of any f (√λ log λ → 0) and are left out.
    fp64 inside; keeps the dtype. O((n+k)·d·min(n+k, d) + min(n+k, d)³). Degenerate cases: 0 where all coincide; entries of
    negative weight count as absent.
    """
    rows = torch.cat([features, entries]).double()
    mass = torch.cat([torch.ones(len(features)).to(weights), weights.clamp_min(0)]).double()
    rows = (mass / mass.sum()).sqrt()[:, None] * rows
    moving = features.double()
    if rows.shape[1] <= rows.shape[0]:
        values, vectors = torch.linalg.eigh(rows.mT @ rows)
        across = (moving @ vectors) * _logarithm(values) @ vectors.mT
    else:
        values, vectors = torch.linalg.eigh(rows @ rows.mT)
        over_values = _logarithm(values) / torch.where(values > 0, values, 1.0)
        across = ((moving @ rows.mT @ vectors) * over_values @ vectors.mT) @ rows
    return -tangent(across, moving).to(features.dtype)


def _logarithm(values: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Log λ, and 0 for eigenvalues that are zero but for rounding."""
    is_present = values > len(values) * torch.finfo(values.dtype).eps * values.max()
    return torch.where(is_present, torch.where(is_present, values, 1.0).log(), 0.0)


@dataclass(frozen=True)
class LatentVendi(Rival):
    """δ = −η·‖x̂0‖·ĝ in every `interval`-th step of the window: ĝ the unit gradient of the Vendi score by x̂0.

    The score is that of memory and the request's images together, cosine kernel on features of x̂0, entries weighted by
    their prompts' nearness; of more than `max_entries` entries the newest count. c-VSG computes it on decoded images with
    an image encoder; this is its latent form, with the step that Algorithm 1 of arXiv 2506.10173 makes of a gradient.
    Where everything coincides there is no push. Source: Askari Hemmat et al., arXiv 2406.04551.
    """

    eta: float = 0.1
    window: float = 0.5
    interval: int = 1
    max_entries: int = 256

    def __post_init__(self) -> None:
        check_not_negative("latent Vendi", eta=self.eta)
        check_positive("latent Vendi", interval=self.interval, max_entries=self.max_entries)
        if not 0 < self.window <= 1:
            raise InvalidArgument(
                f"latent Vendi: the window is a fraction of the steps in (0, 1], got {self.window}"
            )

    def push(self, seen: Seen) -> Float[Tensor, "n c h w"] | None:
        """−η·‖x̂0‖·ĝ."""
        step = seen.step
        eta = self.eta * window_weight(step.index, step.num_steps, self.window)
        if eta == 0 or step.index % self.interval != 0:
            return None
        known = newest(seen.entries, self.max_entries)
        slope = entropy_slope(seen.feature_map.feature(seen.clean), known.features, known.weights)
        is_known = torch.linalg.vector_norm(slope, dim=1, keepdim=True) > LEAST_SLOPE
        pulled = seen.feature_map.adjoint(torch.where(is_known, slope, 0.0), seen.clean)
        norm = torch.linalg.vector_norm(pulled.flatten(1), dim=1)[:, None, None, None]
        direction = -pulled / torch.where(norm > 0, norm, 1.0)
        return scaled(direction, seen.clean, torch.full_like(norm[:, 0, 0, 0], eta)).delta


def newest(entries: Entries, number: int) -> Entries:
    """The last `number` entries."""
    return Entries(entries.features[-number:], entries.weights[-number:])
