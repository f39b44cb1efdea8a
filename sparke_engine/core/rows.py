"""What every score asks of its rows, and how it walks over them without an n×n matrix."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sparke_engine.errors import InvalidArgument, ShapeMismatch

BLOCK_ROWS = 1024


def num_rows(rows: Tensor, name: str, *, least: int = 1) -> int:
    """The number of rows n of `rows` [n,d].

    Raises ShapeMismatch where they are no rows, InvalidArgument where they are no tensor, fewer than `least`,
    whole numbers or not finite. O(n·d).
    """
    if not isinstance(rows, Tensor):
        raise InvalidArgument(
            f"{name} are a tensor [n,d], got a {type(rows).__name__}: torch.as_tensor makes one"
        )
    if rows.dim() != 2 or rows.shape[1] == 0:
        raise ShapeMismatch(f"{name} are rows [n,d] with d ≥ 1, got the shape {list(rows.shape)}")
    if not rows.is_floating_point():
        raise InvalidArgument(f"{name} are floating point, got {rows.dtype}")
    n = rows.shape[0]
    if n < least:
        raise InvalidArgument(f"{name} need at least {'one row' if least == 1 else f'{least} rows'}, got {n}")
    check_finite(rows, name)
    return n


def check_finite(values: Tensor, name: str) -> None:
    """Raise InvalidArgument where one of the values is NaN or infinite. One reading of them, nothing of their size made.

    Of values on a GPU the host waits for the answer.
    """
    if values.numel() == 0:
        return
    least, greatest = torch.aminmax(values)  # NaN where one is
    if not bool(torch.isfinite(least) & torch.isfinite(greatest)):
        raise InvalidArgument(f"{name} hold NaN or infinity: leave those rows out, or mend what made them")


def same_number(a: Tensor, b: Tensor, names: tuple[str, str]) -> None:
    """Raise ShapeMismatch unless there are as many rows of one as of the other."""
    if a.shape[0] != b.shape[0]:
        raise ShapeMismatch(f"{a.shape[0]} {names[0]} need as many {names[1]}, got {b.shape[0]}")


def same_length(a: Tensor, b: Tensor, names: tuple[str, str]) -> None:
    """Raise ShapeMismatch unless the rows of both have the same length."""
    if a.shape[-1] != b.shape[-1]:
        raise ShapeMismatch(
            f"{names[0]} of length {a.shape[-1]} need {names[1]} of that length, got {b.shape[-1]}"
        )


def row_blocks(rows: Tensor, block_rows: int) -> Iterator[Tensor]:
    """The rows, at most `block_rows` at a time."""
    if block_rows < 1:
        raise InvalidArgument(f"a block has at least one row, got {block_rows}")
    for start in range(0, rows.shape[0], block_rows):
        yield rows[start : start + block_rows]
