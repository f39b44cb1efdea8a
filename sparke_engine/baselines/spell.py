"""SPELL: what is predicted is moved out of balls around images that are shielded; elsewhere nothing happens."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.baselines.rival import Rival, Seen, lift, pairs
from sparke_engine.core.domains import check_not_negative
from sparke_engine.core.kernels import unit


def sparse_repellency(
    points: Float[Tensor, "*b n d"],
    shielded: Float[Tensor, "*b m d"],
    weights: Float[Tensor, "*b n m"],
    radius: float,
) -> Float[Tensor, "*b n d"]:
    """Δ_i = Σ_j a_ij · max(r/‖u_i − z_j‖ − 1, 0) · (u_i − z_j): for one ball of weight 1, to its surface and no further.

    fp32 or fp64 in and out, float64 inside: the nearest balls push most. O(n·m·d) time, O(n·m + m·d) memory. Degenerate
    cases: 0 without balls; a centre that the point coincides with, but for rounding, gives no direction and counts as
    absent.
    """
    squared, is_apart = pairs(points, shielded)
    distance = torch.where(is_apart, squared, 1.0).sqrt()
    factor = torch.where(is_apart, weights * (radius / distance - 1).clamp_min(0), 0.0)
    return (factor.sum(-1, keepdim=True) * points - factor @ shielded.double()).to(points.dtype)


@dataclass(frozen=True)
class Spell(Rival):
    """x̂0 becomes x̂0 + λ·Δ, Δ = Σ_j a_j max(r/‖f − f_j‖ − 1, 0)(f − f_j), r = `radius`, λ = `overcompensation`, every step.

    The balls' centres are the memory's entries, each weighted by its prompt's nearness, and, with `with_fellows`, what is
    predicted of the request's other images. The paper measures distances in whole latents. A memory holds unit features, so
    here f = φ(x̂0)/‖φ(x̂0)‖, r ≤ 2, and x̂0 moves by the smallest change that moves φ(x̂0) by ‖φ(x̂0)‖·λΔ (see `lift`);
    where the preset has no grid that is full resolution and, but for the length of latents, the paper's.
    Source: Kirchhof et al., arXiv 2410.06025, eq. 6; λ = 1.6 is their choice for text-to-image models.
    """

    radius: float = 0.5
    overcompensation: float = 1.6
    with_fellows: bool = True

    def __post_init__(self) -> None:
        check_not_negative("SPELL", radius=self.radius, overcompensation=self.overcompensation)

    def push(self, seen: Seen) -> Float[Tensor, "n c h w"] | None:
        """−λ·Δ, lifted to latents."""
        if self.radius == 0 or self.overcompensation == 0:
            return None
        mapped = seen.feature_map.apply(seen.clean)
        features, num_images = unit(mapped), len(mapped)
        weights = seen.known.weights.expand(num_images, -1)
        centres = seen.known.features
        if self.with_fellows:
            others = 1 - torch.eye(num_images, dtype=features.dtype, device=features.device)
            centres, weights = torch.cat([centres, features]), torch.cat([weights, others], dim=1)
        away = sparse_repellency(features, centres, weights, self.radius)
        norm = torch.linalg.vector_norm(mapped, dim=1, keepdim=True)
        return lift(-self.overcompensation * norm * away, seen.feature_map, seen.clean)
