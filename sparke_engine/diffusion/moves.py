"""Moves of latents, and what they make of a step's tensors."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from sparke_engine.diffusion.layouts import LatentLayout


class Move(NamedTuple):
    """`delta` [n,c,h,w] is to be subtracted from these canonical latents; rows that no move names stay to the bit."""

    rows: slice
    delta: Tensor


def moved(layout: LatentLayout, result: Any, moves: list[Move]) -> Any:
    """The step's result with its latents moved, in their dtype."""
    if not moves:
        return result
    latents = less(layout, latents_of(result), moves)
    if isinstance(result, tuple):
        return (latents, *result[1:])
    result.prev_sample = latents
    return result


def less(layout: LatentLayout, latents: Tensor, moves: list[Move]) -> Tensor:
    """The latents with what moves subtracted, in their dtype; the same tensor where nothing moves."""
    if not moves:
        return latents
    canonical = layout.canonical(latents, moves[0].delta.shape[1])
    there = changed(canonical, moves, lambda part, delta: (part.float() - delta).to(part.dtype))
    return layout.restored(there, latents)


def changed(canonical: Tensor, moves: list[Move], change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A copy that is changed in the rows that move."""
    copy = canonical.clone()
    for rows, delta in moves:
        copy[rows] = change(copy[rows], delta)
    return copy


def latents_of(result: Any) -> Tensor:
    """The latents that a scheduler's step has made."""
    latents: Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return latents
