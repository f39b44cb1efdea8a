"""Kernels on directions: what counts is where a row points, so every kernel is invariant under scale."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.domains import check_positive
from sparke_engine.core.half import HalfRows, products, squared_norms
from sparke_engine.errors import InvalidArgument

# Narrower than this, the rounding of a unit row in single precision is far away, and p/2σ² overflows sooner or later.
LEAST_BANDWIDTH = 1e-6


def check_bandwidth(owner: str, **values: float) -> None:
    """Raise InvalidArgument for a Gaussian width that is not finite or below LEAST_BANDWIDTH."""
    for name, value in values.items():
        if not LEAST_BANDWIDTH <= value < math.inf:
            raise InvalidArgument(f"{owner}: {name} is finite and at least {LEAST_BANDWIDTH:g}, got {value}")


def unit(rows: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """The rows divided by their norms.

    Degenerate case: a zero row has no direction and stays zero.
    """
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / torch.where(norm > 0, norm, 1.0)


def exact_unit(rows: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """`unit` in float64, at any scale: rows are first divided by their largest number, so that no square under- or overflows.

    Twice the cost of `unit` or more, for what is not done in every step. Degenerate case: a zero row stays zero.
    """
    rows = rows.double()
    largest = rows.abs().amax(dim=-1, keepdim=True) if rows.shape[-1] > 0 else rows.sum(-1, keepdim=True)
    return unit(rows / torch.where(largest > 0, largest, 1.0))


def squared_distance(
    a: Float[Tensor, "*b n d"], b: Float[Tensor, "*b m d"] | HalfRows
) -> Float[Tensor, "*b n m"]:
    """‖a_i − b_j‖² = ‖a_i‖² + ‖b_j‖² − 2 a_i·b_j, never negative.

    By one matrix product, O(n·m·d); its rounding error is a few ulps of ‖a_i‖² + ‖b_j‖².
    """
    norms = a.square().sum(-1)[..., :, None] + squared_norms(b)[..., None, :]
    return (norms - 2 * products(a, b)).clamp_min(0)


@runtime_checkable
class KernelPower(Protocol):
    """A kernel's power k^p between unit rows: a function of their scalar product c, 1 at c = 1."""

    @property
    def power(self) -> float:
        """The power p."""

    @property
    def steepness(self) -> float:
        """d(k^p)/dc at c = 1."""

    def gram(
        self, a: Float[Tensor, "*b n d"], b: Float[Tensor, "*b m d"] | HalfRows
    ) -> Float[Tensor, "*b n m"]:
        """k(a_i, b_j)^p."""

    def values_and_pulls(
        self, a: Float[Tensor, "*b n d"], b: Float[Tensor, "*b m d"] | HalfRows
    ) -> tuple[Float[Tensor, "*b n m"], Float[Tensor, "*b n m"]]:
        """k(a_i, b_j)^p and the pull s_ij, its derivative by c over `steepness`, so that s = 1 at c = 1.

        ∇_f Σ_j w_j k(f, f_j)^p = steepness · Σ_j w_j s_j f_j, up to a part along f.
        """


@dataclass(frozen=True)
class GaussianPower:
    """k(a, b)^p = exp(−p ‖a − b‖² / 2σ²), σ = `bandwidth`, p = `power`; for rows as they are, not normalised here.

    Between unit rows it is exp(−p (1 − c) / σ²): its pull is its value.
    """

    bandwidth: float
    power: float

    def __post_init__(self) -> None:
        check_bandwidth("a Gaussian kernel", bandwidth=self.bandwidth)
        check_positive("a Gaussian kernel", power=self.power)

    @property
    def steepness(self) -> float:
        """p/σ²."""
        return self.power / self.bandwidth**2

    def gram(
        self, a: Float[Tensor, "*b n d"], b: Float[Tensor, "*b m d"] | HalfRows
    ) -> Float[Tensor, "*b n m"]:
        """k(a_i, b_j)^p, O(n·m·d)."""
        return torch.exp(squared_distance(a, b) * (-self.power / (2 * self.bandwidth**2)))

    def values_and_pulls(
        self, a: Float[Tensor, "*b n d"], b: Float[Tensor, "*b m d"] | HalfRows
    ) -> tuple[Float[Tensor, "*b n m"], Float[Tensor, "*b n m"]]:
        """The Gram matrix twice: one tensor."""
        values = self.gram(a, b)
        return values, values


@dataclass(frozen=True)
class CosinePower:
    """k(a, b)^p = c^p with c = a·b, p = `power` a positive whole number; for unit or zero rows, not normalised here.

    The ordinary power of a number of either sign. Even p: opposite rows count as equal ones, and orthogonal
    rows, not opposite ones, are the farthest; the pull c^(p−1) is negative at c < 0. Odd p: opposite rows are
    the farthest, and k^p is negative at c < 0. Degenerate cases: at c = 0 the pull is 0 for p ≥ 2 and 1 for p
    = 1, whose pull is 1 everywhere; a zero row has c = 0 with every row, itself too.
    """

    power: float

    def __post_init__(self) -> None:
        if not (1 <= self.power < math.inf and self.power == int(self.power)):
            raise InvalidArgument(
                f"the power of a cosine kernel is a positive whole number, got {self.power}"
            )

    @property
    def steepness(self) -> float:
        """The power p."""
        return self.power

    def gram(
        self, a: Float[Tensor, "*b n d"], b: Float[Tensor, "*b m d"] | HalfRows
    ) -> Float[Tensor, "*b n m"]:
        """c_ij^p, O(n·m·d)."""
        return products(a, b) ** self.power

    def values_and_pulls(
        self, a: Float[Tensor, "*b n d"], b: Float[Tensor, "*b m d"] | HalfRows
    ) -> tuple[Float[Tensor, "*b n m"], Float[Tensor, "*b n m"]]:
        """c_ij^p and c_ij^(p−1), O(n·m·d)."""
        cosines = products(a, b)
        return cosines**self.power, cosines ** (self.power - 1)


@runtime_checkable
class Kernel(Protocol):
    """A positive definite function of two directions with k(x, x) = 1."""

    def gram(self, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """K_ij = k(a_i, b_j)."""


def check_kernel(kernel: object) -> None:
    """Raise InvalidArgument for what is no kernel, such as the name or the class of one."""
    if isinstance(kernel, type) or not isinstance(kernel, Kernel):
        raise InvalidArgument(f"a kernel is GaussianKernel(bandwidth) or CosineKernel(), got {kernel!r}")


@dataclass(frozen=True)
class GaussianKernel:
    """k(x, y) = exp(−‖x/‖x‖ − y/‖y‖‖² / 2σ²), σ = `bandwidth`."""

    bandwidth: float

    def __post_init__(self) -> None:
        check_bandwidth("a Gaussian kernel", bandwidth=self.bandwidth)

    def gram(self, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """K_ij = k(a_i, b_j), O(n·m·d)."""
        return GaussianPower(self.bandwidth, 1.0).gram(unit(a), unit(b))


@dataclass(frozen=True)
class CosineKernel:
    """k(x, y) = x·y / ‖x‖‖y‖.

    Degenerate case: zero rows have no direction; they count as one more axis, orthogonal to every other row,
    so that k(x, x) = 1 holds for them too.
    """

    def gram(self, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """K_ij = k(a_i, b_j), O(n·m·d)."""
        return self.feature_map(a) @ self.feature_map(b).mT

    def feature_map(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d+1"]:
        """The vectors ψ with k(x, y) = ψ(x)·ψ(y)."""
        is_zero = (rows == 0).all(-1, keepdim=True).to(rows.dtype)
        return torch.cat([unit(rows), is_zero], dim=-1)
