"""Pictures of what a run is about to make: x̂0 of some of its steps, decoded."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sparke_engine.errors import InvalidArgument, UnsupportedPipeline

MAX_PREVIEWS = 10


@dataclass(frozen=True)
class Previews:
    """How many pictures a group wants of each of its images on the way, and who gets them.

    `show(number, images)` is called on the engine's thread, with the preview's number from 0 and one RGB picture for each
    seed. They come at even distances; a run of few steps has fewer. They change no image.
    """

    num_previews: int
    show: Callable[[int, Sequence[Image.Image]], None]

    def __post_init__(self) -> None:
        if not 0 <= self.num_previews <= MAX_PREVIEWS:
            raise InvalidArgument(f"a group wants 0 to {MAX_PREVIEWS} previews, got {self.num_previews}")

    def number_after(self, done: int, num_steps: int) -> int | None:
        """Which preview is due once `done` of `num_steps` steps are; None where none is, as after the last step."""
        steps = preview_steps(self.num_previews, num_steps)
        return steps.index(done) if done in steps else None


def preview_steps(num_previews: int, num_steps: int) -> list[int]:
    """After how many steps each preview is due: at even distances, each once, before the last step."""
    due = (round((number + 1) * num_steps / (num_previews + 1)) for number in range(num_previews))
    return sorted({step for step in due if 0 < step < num_steps})


@torch.no_grad()
def decoded(pipe: Any, latents: Float[Tensor, "n c h w"]) -> list[Image.Image]:
    """RGB pictures of canonical latents, through the pipeline's own autoencoder. Raises UnsupportedPipeline without one.

    A picture that is not finite is made of zeros, as pipelines do.
    """
    vae = getattr(pipe, "vae", None)
    if vae is None or not hasattr(vae.config, "scaling_factor"):
        raise UnsupportedPipeline(f"{type(pipe).__name__} has no autoencoder to make previews with")
    scale, shift = float(vae.config.scaling_factor), float(getattr(vae.config, "shift_factor", None) or 0.0)
    with _upcast(vae):
        pictures = vae.decode((latents / scale + shift).to(vae.dtype)).sample.float()
    levels = (pictures.nan_to_num() / 2 + 0.5).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu()
    return [Image.fromarray(picture.numpy()).convert("RGB") for picture in levels]


@contextmanager
def _upcast(vae: Any) -> Iterator[None]:
    """In single precision where the autoencoder overflows in half, as its configuration says (SDXL's does)."""
    dtype = vae.dtype
    if dtype is not torch.float16 or not getattr(vae.config, "force_upcast", False):
        yield
        return
    vae.to(torch.float32)
    try:
        yield
    finally:
        vae.to(dtype)
