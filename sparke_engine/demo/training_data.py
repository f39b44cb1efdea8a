"""Endless training data: captions drawn by weight, scenes that keep what the caption states, pictures of them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparke_engine.demo.captions import CaptionTable
from sparke_engine.demo.render import render
from sparke_engine.demo.scene import OPEN, sample_scenes


@dataclass(frozen=True, slots=True)
class Examples:
    """Pictures [b,3,64,64] in [0,1], the caption of each (int64 [b], an index into the table), attributes [b,4]."""

    pictures: Tensor
    captions: Tensor
    attributes: Tensor


class ExampleSource:
    """Draws examples from one seed on one device."""

    def __init__(self, table: CaptionTable, *, device: torch.device, seed: int) -> None:
        self._stated = table.stated.to(device)
        self._weight = table.weight.to(device)
        self._generator = torch.Generator(device).manual_seed(seed)

    def draw(self, size: int) -> Examples:
        """Examples as the diffusion model sees them: stated attributes uniform, open ones skewed."""
        captions = torch.multinomial(self._weight, size, replacement=True, generator=self._generator)
        scenes = sample_scenes(self._stated[captions], self._generator)
        return Examples(render(scenes), captions, scenes.attributes())

    def draw_uniform(self, size: int) -> Examples:
        """Examples with every attribute uniform: for the judge, who must have no favourite."""
        high = torch.tensor([8, 8, 8, 3], device=self._stated.device)
        draws = torch.rand(size, 4, generator=self._generator, device=high.device)
        stated = (draws * high).long()
        scenes = sample_scenes(stated, self._generator)
        captions = torch.full((size,), OPEN, device=high.device)
        return Examples(render(scenes), captions, scenes.attributes())


def tokenise(tokenizer: Any, table: CaptionTable, device: torch.device) -> Tensor:
    """Token ids of every caption, int64 [n,s], padded as a stock pipeline pads."""
    encoded = tokenizer(list(table.texts), padding="max_length", truncation=True, return_tensors="pt")
    return torch.as_tensor(encoded.input_ids).to(device)
