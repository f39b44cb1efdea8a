"""Latent layouts: between the tensors that a scheduler sees and the canonical latents [b,c,h,w] that guidance works on.

    pipelines                        the scheduler sees         canonical
    SD, SDXL, SD3, PixArt, Sana      [b,c,h,w]                  the same
    FLUX                             [b, h/2·w/2, 4c]           [b,c,h,w]: each token is a patch of 2×2
    DiT under guidance               [2b,c,h,w]                 [b,c,h,w]: its first half; both halves are one image
    Wan, AnimateDiff                 [b,c,f,h,w]                [b,c·f,h,w]: the frames of a video are one sample
    CogVideoX                        [b,f,c,h,w]                [b,f·c,h,w]

A model's output may have more channels than the latents, a learned variance: what follows the first c is carried along
untouched. All of it is permutation and selection, so there and back is the same to the bit, in every dtype, O(numbers).
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.errors import UnsupportedPipeline

PATCH = 2
NO_CLASS = 1000  # the label by which DiTPipeline says "no class", whatever the model


class LatentLayout:
    """The scheduler sees [b,c,h,w] itself. Other layouts extend this; one object serves one `with` block.

    `copies` is how often the scheduler's batch repeats the images.
    """

    copies: int = 1

    def observe(self, latents: Tensor, named: Mapping[str, Any]) -> None:
        """Learn the geometry from a call of the denoiser: what it denoises, and the arguments that were given by name."""
        del latents, named

    def canonical(self, latents: Tensor, channels: int | None = None) -> Float[Tensor, "b c h w"]:
        """The canonical latents of a sample, or of a model's output if `channels` says how many belong to the latents."""
        spatial = self.spatial(latents)
        return spatial[: len(spatial) // self.copies, :channels]

    def restored(self, canonical: Float[Tensor, "b c h w"], like: Tensor) -> Tensor:
        """What the scheduler sees if `canonical` takes the place of the canonical latents of `like`."""
        spatial, channels = self.spatial(like), canonical.shape[1]
        repeated = torch.cat([canonical] * self.copies)
        return self._folded(torch.cat([repeated, spatial[:, channels:]], 1), like)

    def spatial(self, latents: Tensor) -> Float[Tensor, "m c h w"]:
        """Any number of rows as [m,c,h,w], such as a denoiser's doubled output. Raises UnsupportedPipeline."""
        if latents.ndim != 4:
            raise UnsupportedPipeline(
                f"guidance needs latents [b,c,h,w] of this pipeline, got {tuple(latents.shape)}; "
                "packed latents and videos are known for certain pipeline classes only"
            )
        return latents

    def _folded(self, spatial: Float[Tensor, "m c h w"], like: Tensor) -> Tensor:
        """The inverse of `spatial`."""
        del like
        return spatial


class PackedLatents(LatentLayout):
    """FLUX: a token is a patch of 2×2 latents with all their channels, tokens in rows. `img_ids` tells the height."""

    def __init__(self) -> None:
        self._ids: Tensor | None = None
        self._columns = 0

    def observe(self, latents: Tensor, named: Mapping[str, Any]) -> None:
        """Count the tokens of the first row: those whose row index, the second number of `img_ids`, is 0."""
        del latents
        ids = named.get("img_ids")
        if isinstance(ids, Tensor) and ids is not self._ids:
            rows = ids.reshape(-1, ids.shape[-2], ids.shape[-1])[0, :, 1]
            self._ids, self._columns = ids, int((rows == 0).sum())

    def spatial(self, latents: Tensor) -> Float[Tensor, "m c h w"]:
        """[m, h/2·w/2, c·2·2] → [m,c,h,w]."""
        columns = self._columns
        if latents.ndim != 3 or columns == 0 or latents.shape[1] % columns or latents.shape[2] % PATCH**2:
            raise UnsupportedPipeline(
                f"packed latents are [b, h/2·w/2, 4c] and the denoiser's `img_ids` tell their width, got "
                f"{tuple(latents.shape)} and {columns} columns"
            )
        num, tokens, numbers = latents.shape
        patches = latents.reshape(num, tokens // columns, columns, numbers // PATCH**2, PATCH, PATCH)
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def _folded(self, spatial: Float[Tensor, "m c h w"], like: Tensor) -> Tensor:
        num, channels, height, width = spatial.shape
        patches = spatial.reshape(num, channels, height // PATCH, PATCH, width // PATCH, PATCH)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(like.shape)


class DoubledBatch(LatentLayout):
    """DiT: under guidance the scheduler's batch holds every image twice, first under its class, then under none.

    The pipeline goes on from the first half alone; both are moved alike.
    """

    def observe(self, latents: Tensor, named: Mapping[str, Any]) -> None:
        """Guidance is on where the second half of the labels is "no class", and the latents of both halves are equal."""
        labels, half = named["class_labels"], len(latents) // 2
        doubled = (
            len(latents) == 2 * half
            and bool((labels[half:] == NO_CLASS).all())
            and torch.equal(latents[:half], latents[half:])
        )
        self.copies = 2 if doubled else 1


class FramesAsChannels(LatentLayout):
    """Videos [b,c,f,h,w] or [b,f,c,h,w]: channels and frames are one axis, so that a video is one sample."""

    def canonical(self, latents: Tensor, channels: int | None = None) -> Float[Tensor, "b cf h w"]:
        """All of it: no video model that is known here learns its variance."""
        del channels
        return self.spatial(latents)

    def spatial(self, latents: Tensor) -> Float[Tensor, "m cf h w"]:
        """[m,·,·,h,w] → [m,c·f,h,w]."""
        if latents.ndim != 5:
            raise UnsupportedPipeline(f"a video's latents have five axes, got {tuple(latents.shape)}")
        return latents.flatten(1, 2)

    def _folded(self, spatial: Float[Tensor, "m cf h w"], like: Tensor) -> Tensor:
        return spatial.reshape(like.shape)
