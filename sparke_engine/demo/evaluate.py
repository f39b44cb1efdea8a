"""Measures pictures with the judge: are the stated attributes right, how diverse are the open ones?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparke_engine.demo.networks import Judge
from sparke_engine.demo.scene import ATTRIBUTES, OPEN


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge sees in n pictures.

    Attributes:
        features: float32 [n,128].
        attributes: int64 [n,4], in the order of `scene.ATTRIBUTES`.
    """

    features: Tensor
    attributes: Tensor


@torch.no_grad()
def judge_pictures(judge: Judge, pictures: Tensor, *, batch: int = 1024) -> Verdict:
    """The verdict on pictures [n,3,64,64] in [0,1], on the CPU, wherever the judge is."""
    features, attributes = [], []
    device = next(judge.parameters()).device
    for part in torch.split(pictures, batch):
        feature, logits = judge(part.to(device))
        features.append(feature.cpu())
        attributes.append(torch.stack([logits[name].argmax(1) for name in ATTRIBUTES], dim=1).cpu())
    return Verdict(torch.cat(features), torch.cat(attributes))


def is_right(seen: Tensor, stated: Tensor, *, texture: bool = False) -> Tensor:
    """Whether every stated attribute is as stated (texture only where asked), bool [n].

    Args:
        seen: int64 [n,4] of a verdict.
        stated: int64 [n,4], `OPEN` where the caption says nothing.
        texture: count the texture too.
    """
    columns = 4 if texture else 3
    return ((seen == stated) | (stated == OPEN))[:, :columns].all(dim=1)


def open_entropy_bits(seen: Tensor, stated: Tensor, column: int) -> float:
    """Entropy of an attribute over pictures whose caption leaves it open, in bits; nan where none does."""
    values = seen[stated[:, column] == OPEN, column]
    if len(values) == 0:
        return float("nan")
    share = torch.bincount(values).double() / len(values)
    share = share[share > 0]
    return float(-(share * share.log2()).sum())


def sheet(pictures: Tensor, columns: int) -> Tensor:
    """Pictures [n,3,64,64] as one, uint8 [rows·64, columns·64, 3]."""
    rows = len(pictures) // columns
    grid = pictures[: rows * columns].reshape(rows, columns, 3, 64, 64).permute(0, 3, 1, 4, 2)
    return (grid.reshape(rows * 64, columns * 64, 3) * 255).round().clamp(0, 255).byte().cpu()
