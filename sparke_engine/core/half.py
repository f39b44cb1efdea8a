"""Products with rows that are kept in half precision, as exact as in single precision, at the cost of reading them once.

A number x in fp32 is scale · (hi + lo) to 2⁻²² of the largest of its row, hi and lo in fp16. So a product of a few fp32
rows with many fp16 rows is one matrix product of twice as many fp16 rows, added up in fp32: the many are neither
converted nor copied, and reading them is all that it costs. On a CPU, which has no such product, they are converted a
block at a time, and to double precision where the few are.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.matmul import matmul
from sparke_engine.core.rows import BLOCK_ROWS


@dataclass(frozen=True)
class HalfRows:
    """Rows in half precision and their squared norms in fp32, read once; the rows are what they are after rounding."""

    values: Float[Tensor, "k d"]
    squared_norms: Float[Tensor, " k"]

    @classmethod
    def of(cls, values: Float[Tensor, "k d"]) -> "HalfRows":
        """The rows with their norms. No copy and no temporary of their size where they are in half precision."""
        values = values.half()
        norms = torch.linalg.vector_norm(values, dim=-1, dtype=torch.float32)
        return cls(values, norms.square())

    def products(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """⟨row, kept row⟩ in fp32. O(n·k·d), bound by one reading of the kept rows for small n."""
        if not self.values.is_cuda:
            blocks = [matmul(rows, block.to(rows.dtype).mT) for block in torch.split(self.values, BLOCK_ROWS)]
            return torch.cat(blocks, dim=-1) if blocks else rows.new_zeros(len(rows), 0)
        parts, scale = _halves(rows)
        both = matmul(parts, self.values.mT, out_dtype=torch.float32)
        return scale * (both[: len(rows)] + both[len(rows) :])

    def weighted_sums(self, weights: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """Σ_j weight_j · kept row_j in fp32; cost as of `products`."""
        if not self.values.is_cuda:
            total = weights.new_zeros(len(weights), self.values.shape[1])
            blocks = zip(
                torch.split(weights, BLOCK_ROWS, dim=-1), torch.split(self.values, BLOCK_ROWS), strict=True
            )
            for some, block in blocks:
                total = total + matmul(some, block.to(some.dtype))
            return total
        parts, scale = _halves(weights)
        both = matmul(parts, self.values, out_dtype=torch.float32)
        return scale * (both[: len(weights)] + both[len(weights) :])


Rows = Tensor | HalfRows


def products(rows: Float[Tensor, "*b n d"], kept: Rows) -> Float[Tensor, "*b n k"]:
    """⟨row, kept row⟩, whatever the kept rows are kept in."""
    return kept.products(rows) if isinstance(kept, HalfRows) else matmul(rows, kept.mT)


def weighted_sums(weights: Float[Tensor, "*b n k"], kept: Rows) -> Float[Tensor, "*b n d"]:
    """Σ_j weight_j · kept row_j, likewise."""
    return kept.weighted_sums(weights) if isinstance(kept, HalfRows) else matmul(weights, kept)


def squared_norms(kept: Rows) -> Float[Tensor, "*b k"]:
    """‖kept row‖², likewise."""
    return kept.squared_norms if isinstance(kept, HalfRows) else kept.square().sum(-1)


def _halves(rows: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "m d"], Float[Tensor, "n 1"]]:
    """The m = 2n fp16 rows hi and lo, and the scale with row ≈ scale · (hi + lo); scale 1 for rows of zero."""
    largest = rows.abs().amax(dim=-1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0)
    scaled = rows / scale
    high = scaled.half()
    return torch.cat([high, (scaled - high).half()]), scale
