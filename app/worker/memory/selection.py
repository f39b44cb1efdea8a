"""Which entries of a memory guide an image. Pure numpy: an entry's answer depends on it and the question alone."""

import math

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Halves = NDArray[np.float16]
Indices = NDArray[np.int64]

# |error| of an fp32 inner product of unit vectors is at most p·2⁻²⁴: 2.4e-4 for p = 4,096.
FLOAT32_SLACK = 1e-3
_BLOCK_ROWS = 1024


def min_cosine(prompt_bandwidth: float, exponent: float, min_weight: float) -> float:
    """The cosine of unit prompt embeddings from which on `k_Y^p ≥ ε` holds.

    `k_Y = exp(−‖y−y'‖² / 2σ²)` and `‖y−y'‖² = 2 − 2c`, so `k_Y^p = exp(−p(1−c)/σ²) ≥ ε ⇔ c ≥ 1 + σ² ln ε / p`.
    At ε ≤ 0 or an infinite bandwidth, and wherever the bound falls below −1, every entry qualifies: −1.
    """
    if min_weight <= 0.0 or math.isinf(prompt_bandwidth):
        return -1.0
    return max(-1.0, 1.0 + prompt_bandwidth**2 * math.log(min_weight) / exponent)


def unit_rows(rows: NDArray[np.floating]) -> Float32:
    """Rows `[n, p]` at unit norm in fp32; a zero row stays zero. Row by row: no row depends on the others."""
    exact = rows.astype(np.float64)
    norms = np.sqrt((exact * exact).sum(axis=1, keepdims=True))
    units = np.divide(exact, norms, out=np.zeros_like(exact), where=norms > 0.0)
    return np.asarray(units, np.float32)


def exact_cosines(rows: Float32, query: Float32) -> NDArray[np.float64]:
    """Inner products of rows `[n, p]` with the query `[p]` in float64, in blocks.

    Summed within each row, unlike a matrix product, whose rounding depends on how many rows there are: an entry that
    qualified once qualifies again in a memory that has grown.
    """
    wanted = query.astype(np.float64)
    blocks = [
        (rows[start : start + _BLOCK_ROWS].astype(np.float64) * wanted).sum(axis=1)
        for start in range(0, len(rows), _BLOCK_ROWS)
    ]
    return np.concatenate(blocks) if blocks else np.empty(0)
