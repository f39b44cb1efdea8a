"""Feature maps φ: linear maps from latents to vectors, with the adjoint φᵀ that carries a direction back.

A map is one matrix a spatial axis, P_h [g_h,h] and P_w [g_w,w], applied to every channel: φ(z) = vec(P_h z P_wᵀ) and
φᵀ(v) = P_hᵀ v P_w. Rows of P average over a cell; where sizes do not divide, cells overlap by a row as in adaptive
average pooling. ⟨φ(z), v⟩ = ⟨z, φᵀ(v)⟩ holds exactly in every case.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.kernels import unit
from sparke_engine.core.matmul import matmul
from sparke_engine.errors import InvalidArgument


@dataclass(frozen=True)
class FeatureMap:
    """Average pooling to `grid` = (rows, columns), or the identity where it is None.

    A pooled feature has channels · rows · columns numbers whatever the image's size; an identity's has as many as the
    latents, so only images of one size can be compared.
    """

    grid: tuple[int, int] | None

    def __post_init__(self) -> None:
        if self.grid is not None and min(self.grid) < 1:
            raise InvalidArgument(f"a grid has at least one row and one column, got {self.grid}")

    def dim(self, channels: int, height: int, width: int) -> int:
        """The length d of the feature of latents [channels, height, width]."""
        rows, columns = self.grid or (height, width)
        return channels * rows * columns

    def cell(self, height: int, width: int) -> float:
        """How many latents of [height, width] a number of the feature is the mean of; at least 1."""
        rows, columns = self.grid or (height, width)
        return max(height * width / (rows * columns), 1.0)

    def apply(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """vec(φ(z)), O(n·c·h·w·(g_h + g_w))."""
        if self.grid is None:
            return latents.flatten(1)
        over_rows, over_columns = self._matrices(latents)
        return matmul(matmul(over_rows, latents), over_columns.mT).flatten(1)

    def adjoint(
        self, vectors: Float[Tensor, "n d"], latents: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "n c h w"]:
        """φᵀ(v) in the shape of `latents` (whose values do not matter): each cell's number spread over its pixels."""
        if self.grid is None:
            return vectors.reshape(latents.shape)
        over_rows, over_columns = self._matrices(latents)
        pooled = vectors.reshape(*latents.shape[:2], *self.grid)
        return matmul(matmul(over_rows.mT, pooled), over_columns)

    def feature(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The unit feature f = vec(φ(z)) / ‖vec(φ(z))‖; zero where φ(z) is zero."""
        return unit(self.apply(latents))

    def _matrices(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = self.grid or latents.shape[-2:]
        return (
            _averaging(latents.shape[-2], rows, latents.dtype, latents.device),
            _averaging(latents.shape[-1], columns, latents.dtype, latents.device),
        )


def _averaging(
    size: int, cells: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "{cells} {size}"]:
    """P: row i averages over positions ⌊i·size/cells⌋ up to ⌈(i+1)·size/cells⌉."""
    if torch.compiler.is_compiling():  # which folds it, and knows no way out of inference mode
        return _made_averaging(size, cells, dtype, device)
    return _kept_averaging(size, cells, dtype, device)


@lru_cache(maxsize=64)
def _kept_averaging(size: int, cells: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):  # it is kept, and a later call may have gradients
        return _made_averaging(size, cells, dtype, device)


def _made_averaging(size: int, cells: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    cell = torch.arange(cells, device=device)[:, None]
    position = torch.arange(size, device=device)[None]
    start = cell * size // cells
    stop = ((cell + 1) * size + cells - 1) // cells
    inside = ((position >= start) & (position < stop)).double()
    return (inside / inside.sum(1, keepdim=True)).to(dtype)
