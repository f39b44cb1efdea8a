"""The types that the engine's parts hand to one another. Shapes are checked at run time under pytest only."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Neighbours:
    """The past images whose prompts are near, chosen once before denoising: b problems of k entries each.

    `features` are unit features of finished latents, `prompt_embeddings` their unit prompt embeddings. Where `mask`
    is false the entry counts as absent, whatever it holds. `weights` is how many entries each stands for: 1, and more
    in a sample; a negative weight attracts.
    """

    features: Float[Tensor, "b k d"]
    prompt_embeddings: Float[Tensor, "b k p"]
    mask: Bool[Tensor, "b k"]
    weights: Float[Tensor, "b k"]

    @classmethod
    def of(cls, features: Float[Tensor, "b k d"], prompt_embeddings: Float[Tensor, "b k p"]) -> "Neighbours":
        """Neighbours that are all present and count once each."""
        shape = features.shape[:2]
        return cls(
            features=features,
            prompt_embeddings=prompt_embeddings,
            mask=torch.ones(shape, dtype=torch.bool, device=features.device),
            weights=torch.ones(shape, dtype=torch.float32, device=features.device),
        )

    @property
    def num_problems(self) -> int:
        """How many problems b these are the neighbours of."""
        return self.features.shape[0]


@runtime_checkable
class NeighbourRule(Protocol):
    """Which entries are neighbours: those with k_Y^p ≥ `min_prompt_kernel`, at most `max_neighbours` of them."""

    @property
    def prompt_bandwidth(self) -> float:
        """The Gaussian width σ_Y of the prompt kernel."""

    @property
    def power(self) -> float:
        """The power p of the kernels."""

    @property
    def min_prompt_kernel(self) -> float:
        """The least k_Y^p that makes an entry a neighbour."""

    @property
    def max_neighbours(self) -> int:
        """The most neighbours of one image; above it a weighted sample, another for every version, stands for all."""
