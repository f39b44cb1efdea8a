"""Arrays that grow at their end."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)
_LEAST_ROWS = 64
_DOUBLED_ROWS = 65_536  # larger ones grow by a quarter


def grown(array: NDArray[Scalar], num_rows: int) -> NDArray[Scalar]:
    """The array itself where it has so many rows, else a larger one with the same rows and zeros behind them."""
    held = len(array)
    if num_rows <= held:
        return array
    spare = held if held < _DOUBLED_ROWS else held // 4
    larger = np.zeros((max(num_rows, held + spare, _LEAST_ROWS), *array.shape[1:]), array.dtype)
    larger[:held] = array
    return larger
