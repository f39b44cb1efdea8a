"""From images or texts to features, through whatever extractor the caller has."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from sparke_engine.core.rows import num_rows
from sparke_engine.errors import InvalidArgument, ShapeMismatch

Items = TypeVar("Items", bound=Tensor | Sequence[Any])


@torch.no_grad()
def features_of(items: Items, extractor: Callable[[Items], Tensor], *, batch_size: int = 64) -> Tensor:
    """The features [n,d] of n items, at most `batch_size` of them at a time, without gradients.

    `items` is a tensor of images [n,c,h,w] or any sequence (texts, PIL images); the extractor gets slices of
    it and gives [b,d] for b items. Dtype and device are the extractor's. Raises ShapeMismatch where it gives
    other than b rows of one length, InvalidArgument without items or for features that are not finite.
    """
    if len(items) == 0:
        raise InvalidArgument("features need at least one item, got none")
    if batch_size < 1:
        raise InvalidArgument(f"a batch has at least one item, got {batch_size}")
    parts: list[Tensor] = []
    for start in range(0, len(items), batch_size):
        batch = cast("Items", items[start : start + batch_size])
        part = extractor(batch)
        if num_rows(part, "the extractor's features", least=0) != len(batch):
            raise ShapeMismatch(f"the extractor gave {len(part)} rows of features for {len(batch)} items")
        if parts and part.shape[1] != parts[0].shape[1]:
            raise ShapeMismatch(
                f"the extractor gave features of length {parts[0].shape[1]}, then {part.shape[1]}"
            )
        parts.append(part)
    return torch.cat(parts)
