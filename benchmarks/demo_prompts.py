"""The prompts of the demo benchmarks: each leaves something open, none comes twice, and tuning has prompts of its own."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparke_engine.demo.captions import caption_table
from sparke_engine.demo.scene import OPEN

Split = Literal["test", "tuning"]
SPLITS: tuple[Split, ...] = ("test", "tuning")
MOST = 64
_FIRST_SEED: dict[Split, int] = {"test": 9_000_000, "tuning": 0}


@dataclass(frozen=True)
class Prompts:
    """Texts with what each states, int64 [n,4] in the order of `scene.ATTRIBUTES`, and where their images' seeds start."""

    texts: tuple[str, ...]
    stated: Tensor
    first_seed: int = 0


def open_prompts(number: int, split: Split = "test") -> Prompts:
    """In every eight prompts one states its shape alone, four a colour too, three a background: at most 64, all distinct.

    The two splits share no pair of shape and colour, no pair of shape and background, and no seed; the eight shapes
    alone are asked for in other words.
    """
    if not 1 <= number <= MOST:
        raise SystemExit(f"there are 1 to {MOST} prompts a split, asked for {number}")
    parity = SPLITS.index(split)
    table = caption_table()
    stated, texts = [], []
    for index in range(number):
        turn, place = divmod(index, 8)
        shape = (turn + place) % 8
        value = (
            2 * (place // 2) + (shape + parity) % 2
        ) % 8  # of the parity of its shape in one split, not in the other
        colour, background = (value, OPEN) if place % 2 else (OPEN, value if place else OPEN)
        row = torch.tensor((shape, colour, background, OPEN))
        phrasings = torch.nonzero((table.stated == row).all(dim=1))[:, 0]
        stated.append(row)
        texts.append(table.texts[int(phrasings[(index + 3 * parity) % len(phrasings)])])
    return Prompts(tuple(texts), torch.stack(stated), _FIRST_SEED[split])
