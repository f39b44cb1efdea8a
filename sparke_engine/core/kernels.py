"""Kernels on directions: what counts is where a row points, so every kernel is invariant under scale."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.errors import InvalidArgument


def unit(rows: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """The rows divided by their norms.

    Degenerate case: a zero row has no direction and stays zero.
    """
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / torch.where(norm > 0, norm, 1.0)


def squared_distance(a: Float[Tensor, "*b n d"], b: Float[Tensor, "*b m d"]) -> Float[Tensor, "*b n m"]:
    """‖a_i − b_j‖² = ‖a_i‖² + ‖b_j‖² − 2 a_i·b_j, never negative.

    By one matrix product, O(n·m·d); its rounding error is a few ulps of ‖a_i‖² + ‖b_j‖².
    """
    cross = a @ b.mT
    return (a.square().sum(-1)[..., :, None] + b.square().sum(-1)[..., None, :] - 2 * cross).clamp_min(0)


@dataclass(frozen=True)
class GaussianPower:
    """k(a, b)^p = exp(−p ‖a − b‖² / 2σ²), σ = `bandwidth`, p = `power`; for rows as they are, not normalised here."""

    bandwidth: float
    power: float

    def __post_init__(self) -> None:
        if not (self.bandwidth > 0 and self.power > 0):
            raise InvalidArgument(f"bandwidth and power are positive, got {self.bandwidth} and {self.power}")

    def gram(self, a: Float[Tensor, "*b n d"], b: Float[Tensor, "*b m d"]) -> Float[Tensor, "*b n m"]:
        """k(a_i, b_j)^p, O(n·m·d)."""
        return torch.exp(squared_distance(a, b) * (-self.power / (2 * self.bandwidth**2)))


@runtime_checkable
class Kernel(Protocol):
    """A positive definite function of two directions with k(x, x) = 1."""

    def gram(self, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """K_ij = k(a_i, b_j)."""


@dataclass(frozen=True)
class GaussianKernel:
    """k(x, y) = exp(−‖x/‖x‖ − y/‖y‖‖² / 2σ²), σ = `bandwidth`."""

    bandwidth: float

    def __post_init__(self) -> None:
        if not self.bandwidth > 0:
            raise InvalidArgument(f"a bandwidth is positive, got {self.bandwidth}")

    def gram(self, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """K_ij = k(a_i, b_j), O(n·m·d)."""
        return GaussianPower(self.bandwidth, 1.0).gram(unit(a), unit(b))


@dataclass(frozen=True)
class CosineKernel:
    """k(x, y) = x·y / ‖x‖‖y‖.

    Degenerate case: zero rows have no direction; they count as one more axis, orthogonal to every other row, so
    that k(x, x) = 1 holds for them too.
    """

    def gram(self, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """K_ij = k(a_i, b_j), O(n·m·d)."""
        return self.feature_map(a) @ self.feature_map(b).mT

    def feature_map(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d+1"]:
        """The vectors ψ with k(x, y) = ψ(x)·ψ(y)."""
        is_zero = (rows == 0).all(-1, keepdim=True).to(rows.dtype)
        return torch.cat([unit(rows), is_zero], dim=-1)
