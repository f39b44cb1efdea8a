"""Between pictures and canonical latents, through a pipeline's own autoencoder, in the units that it denoises."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sparke_engine.errors import InvalidArgument, NonFiniteLatents, UnsupportedPipeline


@torch.no_grad()
def decoded(pipe: Any, latents: Float[Tensor, "n c h w"]) -> list[Image.Image]:
    """RGB pictures of canonical latents. Raises UnsupportedPipeline where the pipeline has no autoencoder of images.

    A picture that is not finite is made of zeros, as pipelines do.
    """
    vae, units = autoencoder_of(pipe)
    with _upcast(vae):
        pictures = vae.decode(units.to_autoencoder(latents).to(vae.dtype)).sample.float()
    levels = (pictures.nan_to_num() / 2 + 0.5).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu()
    return [Image.fromarray(picture.numpy()).convert("RGB") for picture in levels]


@torch.no_grad()
def encoded(pipe: Any, pictures: Sequence[Image.Image]) -> list[Float[Tensor, "1 c h w"]]:
    """Canonical latents of RGB pictures, fp32, as if the pipeline had made them: the mode of what the autoencoder says.

    One at a time, so that no picture's latents depend on the others. Raises UnsupportedPipeline as `decoded`,
    InvalidArgument where a side is no multiple of what the autoencoder takes together, and NonFiniteLatents.
    """
    _check_pictures(pictures)
    vae, units = autoencoder_of(pipe)
    multiple_px, device = int(pipe.vae_scale_factor), _device_of(pipe, vae)
    found = []
    with _upcast(vae):
        for picture in pictures:
            if picture.width % multiple_px or picture.height % multiple_px or not min(picture.size):
                raise InvalidArgument(
                    f"a picture's sides are multiples of {multiple_px} px, got {picture.width}x{picture.height}"
                )
            levels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None]
            pixels = (levels.float() / 127.5 - 1).to(device, vae.dtype)
            found.append(_finite(units.to_denoiser(_mode(vae.encode(pixels)).float())))
    return found


@contextmanager
def one_at_a_time(pipe: Any) -> Iterator[None]:
    """Images of a batch go through the autoencoder one by one, so what it needs of the device is that of one image.

    Autoencoders that have no slices take batches whole, as ever; a pipeline's own choice of them is there again afterwards.
    """
    vae: Any = getattr(pipe, "vae", None)
    is_sliced = getattr(vae, "use_slicing", None)
    if is_sliced is None:
        yield
        return
    vae.use_slicing = True
    try:
        yield
    finally:
        vae.use_slicing = is_sliced


@dataclass(frozen=True)
class Units:
    """What lies between an autoencoder's latents and a denoiser's: z = (a − shift)·scale, each channel by its own."""

    shift: float | Tensor
    scale: float | Tensor

    def to_denoiser(self, latents: Tensor) -> Tensor:
        """Z of a."""
        return (latents - _on(self.shift, latents)) * _on(self.scale, latents)

    def to_autoencoder(self, latents: Tensor) -> Tensor:
        """A of z."""
        return latents / _on(self.scale, latents) + _on(self.shift, latents)


def autoencoder_of(pipe: Any) -> tuple[Any, "Units"]:
    """The pipeline's autoencoder of images and its units, or UnsupportedPipeline."""
    vae = getattr(pipe, "vae", None)
    if vae is None or not hasattr(vae.config, "scaling_factor"):
        raise UnsupportedPipeline(f"{type(pipe).__name__} has no autoencoder of images")
    scale, shift = float(vae.config.scaling_factor), getattr(vae.config, "shift_factor", None)
    means, deviations = (getattr(vae.config, f"latents_{name}", None) for name in ("mean", "std"))
    if means is not None and deviations is not None:
        return vae, Units(_by_channel(means), scale / _by_channel(deviations))
    return vae, Units(float(shift or 0.0), scale)


def _check_pictures(pictures: object) -> None:
    given = pictures if isinstance(pictures, Sequence) else None
    wrong = [pictures] if given is None else [each for each in given if not isinstance(each, Image.Image)]
    if wrong:
        raise InvalidArgument(f"pictures are a list of PIL images, got a {type(wrong[0]).__name__}")


def _by_channel(numbers: Sequence[float]) -> Tensor:
    return torch.tensor(numbers)[:, None, None]


def _on(value: float | Tensor, latents: Tensor) -> float | Tensor:
    return value.to(latents.device, torch.float32) if isinstance(value, Tensor) else value


def _mode(output: Any) -> Tensor:
    """The likeliest latents: a distribution's mode, or what an autoencoder without one says."""
    if hasattr(output, "latent_dist"):
        found: Tensor = output.latent_dist.mode()
    else:
        found = output.latents if hasattr(output, "latents") else output.latent  # of tiny, and of deep ones
    return found


def _finite(latents: Tensor) -> Tensor:
    if not bool(torch.isfinite(latents).all()):  # a memory that held them would break every image near it
        raise NonFiniteLatents(
            "a picture's latents hold NaN or infinity: the autoencoder overflowed its dtype (try bfloat16 or float32)"
        )
    return latents


def _device_of(pipe: Any, vae: Any) -> torch.device:
    """Where the autoencoder is; where the pipeline computes if its weights come to a device only for their use (offloading)."""
    if not hasattr(vae, "_hf_hook"):
        own: torch.device = vae.device
        return own
    there: torch.device = pipe._execution_device  # noqa: SLF001 - as the pipeline's own encoding does
    return there


def overflows(vae: Any) -> bool:
    """Whether the autoencoder is in half precision, which its configuration says is too little for it (SDXL's does)."""
    return vae.dtype is torch.float16 and bool(getattr(vae.config, "force_upcast", False))


@contextmanager
def _upcast(vae: Any) -> Iterator[None]:
    """In single precision where the autoencoder overflows in half."""
    if not overflows(vae):
        yield
        return
    dtype = vae.dtype
    vae.to(torch.float32)
    try:
        yield
    finally:
        vae.to(dtype)
