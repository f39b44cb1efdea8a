"""Particle Guidance: images that are made together repel one another by a kernel of their latents."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparke_engine.baselines.rival import Rival, Seen, pairs
from sparke_engine.core.domains import check_not_negative
from sparke_engine.core.gradients import tangent
from sparke_engine.core.kernels import unit
from sparke_engine.errors import InvalidArgument


def repulsion(
    points: Float[Tensor, "*b n d"],
    others: Float[Tensor, "*b m d"],
    weights: Float[Tensor, "*b n m"],
    is_self: Bool[Tensor, "*b n m"],
) -> Float[Tensor, "*b n d"]:
    """Σ_j a_ij · 2 w_ij (u_i − u_j)/h_i with w_ij = exp(−‖u_i − u_j‖²/h_i): −∇ Σ_j a_ij w_ij at a fixed bandwidth.

    h_i = median_j(‖u_i − u_j‖)²/log m_i over the m_i others that are not the point itself, for each point by itself, as
    published (there m is the number of images less one); of an even number the lower median. fp32 or fp64 in and out,
    float64 inside. O(n·m·d) time, O(n·m + m·d) memory. Degenerate cases: of a single other h would be infinite and two
    images would never part, so log 2 stands for log 1; 0 without others, and where the median is 0 but for rounding: half
    the others coincide with the point, and no scale is left.
    """
    if others.shape[-2] == 0:
        return torch.zeros_like(points)
    squared, is_apart = pairs(points, others)
    known = torch.where(is_apart, squared, 0.0)
    median = known.masked_fill(is_self, math.nan).nanmedian(dim=-1, keepdim=True).values
    num_others = (~is_self).sum(-1, keepdim=True).clamp_min(2)
    bandwidth = torch.where(median > 0, median, 1.0) / torch.log(num_others.double())
    pull = weights * 2 * torch.exp(-squared / bandwidth) / bandwidth
    pull = torch.where((median > 0) & ~is_self, pull, 0.0)
    return (pull.sum(-1, keepdim=True) * points - pull @ others.double()).to(points.dtype)


@dataclass(frozen=True)
class ParticleGuidance(Rival):
    """ε becomes ε − c·σ̃·Σ_j 2 w_ij (u_i − u_j)/h_i while σ̃ = σ/α ≥ `least_noise`, the form of the published code.

    In terms of x̂0 that is δ = −c·σ̃²·Σ_j …; c = `coefficient`, see `repulsion` for w and h.

    u are the variance-preserving noisy latents of the group's images, as published; `in_features`: the unit features of
    their x̂0, with the gradient pulled back to x̂0. There the memory can take part too (`with_memory`), each entry weighted
    by its prompt's nearness. The network's Jacobian is left out in both. No push at infinite σ̃.
    Source: Corso et al., arXiv 2310.13102, sec. 5 and the code for Stable Diffusion.
    """

    coefficient: float = 10.0
    in_features: bool = False
    with_memory: bool = False
    least_noise: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative("particle guidance", coefficient=self.coefficient, least_noise=self.least_noise)
        if self.with_memory and not self.in_features:
            raise InvalidArgument("particle guidance: a memory holds features, so it needs in_features=True")

    def push(self, seen: Seen) -> Float[Tensor, "n c h w"] | None:
        """−c·σ̃²·Σ_j … while it is noisy enough."""
        ratio = seen.step.noise.ratio
        if self.coefficient == 0 or not self.least_noise <= ratio < math.inf:
            return None
        force = self._of_features(seen) if self.in_features else self._of_noisy(seen)
        return -self.coefficient * ratio**2 * force.reshape(seen.clean.shape)

    def _of_noisy(self, seen: Seen) -> Tensor:
        points = seen.step.noisy[seen.group.rows].flatten(1) / seen.step.noise.scale
        is_self = torch.eye(len(points), dtype=torch.bool, device=points.device)
        return repulsion(points, points, torch.ones_like(is_self, dtype=points.dtype), is_self)

    def _of_features(self, seen: Seen) -> Tensor:
        mapped = seen.feature_map.apply(seen.clean)
        features, num_images = unit(mapped), len(mapped)
        known = seen.known if self.with_memory else None
        num_entries = 0 if known is None else known.num_entries
        others, weights = features, torch.ones(num_images, num_images + num_entries).to(features)
        if known is not None:
            others = torch.cat([features, known.features])
            weights[:, num_images:] = known.weights
        is_self = torch.eye(num_images, num_images + num_entries, dtype=torch.bool, device=features.device)
        norm = torch.linalg.vector_norm(mapped, dim=1, keepdim=True)
        force = tangent(repulsion(features, others, weights, is_self), features)
        force = torch.where(norm > 0, force / torch.where(norm > 0, norm, 1.0), 0.0)
        return seen.feature_map.adjoint(force, seen.clean)
