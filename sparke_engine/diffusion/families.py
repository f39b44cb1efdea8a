"""The one registry of pipelines: for each class of diffusers its preset, its latents' layout, and what embeds prompts."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.kernels import unit
from sparke_engine.diffusion.calls import CalledWithText
from sparke_engine.diffusion.edits import EditPipelines
from sparke_engine.diffusion.layouts import DoubledBatch, FramesAsChannels, LatentLayout, PackedLatents
from sparke_engine.diffusion.prompt_embedding import (
    Embedder,
    HiddenMean,
    PooledText,
    Prompt,
    class_label,
    image_embedding,
)
from sparke_engine.errors import InvalidArgument, ShapeMismatch, UnsupportedPipeline
from sparke_engine.guidance.features import FeatureMap


@dataclass(frozen=True)
class Family:
    """What guidance must know of a pipeline class.

    `call`: how an engine makes images of text with it; None where only library users call it. `edits`: what edits
    pictures with the parts of a pipeline that has a call.
    """

    preset: str
    embed: Embedder
    layout: Callable[[], LatentLayout] = LatentLayout
    call: CalledWithText | None = None
    edits: EditPipelines = field(default_factory=EditPipelines)


_CLIP = PooledText((("tokenizer", "text_encoder"),))
_SD = Family("sd", _CLIP)
_SDXL = Family("sdxl", PooledText((("tokenizer_2", "text_encoder_2"),)))
_SD3 = Family(
    "sd3",
    PooledText(
        (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")), ("tokenizer_3", "text_encoder_3")
    ),
)
_FLUX = Family(
    "flux",
    PooledText((("tokenizer", "text_encoder"),), ("tokenizer_2", "text_encoder_2")),
    layout=PackedLatents,
)
_VIDEO = Family("video", HiddenMean(), layout=FramesAsChannels)

FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": replace(
        _SD,
        call=CalledWithText(),
        edits=EditPipelines("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    ),
    "StableDiffusionImg2ImgPipeline": _SD,
    "StableDiffusionInpaintPipeline": _SD,
    "StableDiffusionControlNetPipeline": _SD,
    "LatentConsistencyModelPipeline": _SD,
    "StableDiffusionXLPipeline": replace(
        _SDXL,
        call=CalledWithText(),
        edits=EditPipelines("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    ),
    "StableDiffusionXLImg2ImgPipeline": _SDXL,
    "StableDiffusionXLInpaintPipeline": _SDXL,
    "StableDiffusionXLControlNetPipeline": _SDXL,
    "StableDiffusion3Pipeline": replace(
        _SD3,
        call=CalledWithText(),
        edits=EditPipelines("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    ),
    "StableDiffusion3Img2ImgPipeline": _SD3,
    "StableDiffusion3InpaintPipeline": _SD3,
    "FluxPipeline": replace(
        _FLUX,
        call=CalledWithText(has_negative_prompt=False, patch=2, is_packed=True),
        edits=EditPipelines("FluxImg2ImgPipeline", "FluxInpaintPipeline"),
    ),
    "FluxImg2ImgPipeline": _FLUX,
    "FluxInpaintPipeline": _FLUX,
    "PixArtSigmaPipeline": Family(
        "pixart",
        HiddenMean(names_mask=True),
        call=CalledWithText(binned_sides=frozenset({32, 64, 128, 256})),
    ),
    "SanaPipeline": Family(
        "sana",
        HiddenMean(names_mask=True),
        call=CalledWithText(multiple_px=32, binned_sides=frozenset({16, 32, 64, 128})),
    ),
    "KandinskyV22Pipeline": Family("kandinsky", image_embedding),
    "KandinskyV22CombinedPipeline": Family(
        "kandinsky", PooledText((("prior_tokenizer", "prior_text_encoder"),))
    ),
    "DiTPipeline": Family("dit", class_label, layout=DoubledBatch),
    "WanPipeline": _VIDEO,
    "CogVideoXPipeline": _VIDEO,
    "AnimateDiffPipeline": replace(_VIDEO, embed=_CLIP),
}


def supported_pipelines() -> tuple[str, ...]:
    """Class names of the pipelines that can be guided."""
    return tuple(sorted(FAMILIES))


def served_pipelines() -> tuple[str, ...]:
    """Class names of those that an engine makes images of text with."""
    return tuple(sorted(name for name, family in FAMILIES.items() if family.call is not None))


def family_of(pipe: Any) -> Family:
    """The family of a pipeline, or UnsupportedPipeline. Subclasses may call otherwise, so classes are matched exactly."""
    name = type(pipe).__name__
    if name not in FAMILIES:
        raise UnsupportedPipeline(f"{name} is not guided; supported: {', '.join(supported_pipelines())}")
    return FAMILIES[name]


def layout_for(pipe: Any) -> LatentLayout:
    """A fresh layout for one block on this pipeline; [b,c,h,w] itself for a class that is not known."""
    family = FAMILIES.get(type(pipe).__name__)
    return LatentLayout() if family is None else family.layout()


def feature_dim_of(pipe: Any, feature_map: FeatureMap) -> int | None:
    """The length of what an image of this pipeline is remembered by; None where only a run tells.

    That is a video's, and any where the map has no grid: there it depends on the size of what is made.
    """
    autoencoder = getattr(pipe, "vae", None) or getattr(pipe, "movq", None)
    channels = getattr(getattr(autoencoder, "config", None), "latent_channels", None)
    if feature_map.grid is None or channels is None or family_of(pipe).layout is FramesAsChannels:
        return None
    return feature_map.dim(int(channels), *feature_map.grid)


@torch.no_grad()
def embed_prompt(pipe: Any, prompt: Prompt) -> Float[Tensor, " p"]:
    """The unit embedding of one prompt, fp32 on the CPU.

    A text, a class where the pipeline takes classes, or, for any pipeline, an embedding of the caller's own, [p] or [1,p].
    Raises UnsupportedPipeline, InvalidArgument for a prompt that the pipeline does not take, or ShapeMismatch for an
    embedding of several rows, such as what a denoiser reads of the tokens of a text: pool it first.
    """
    family = family_of(pipe)
    if not isinstance(prompt, Tensor):
        return unit(family.embed(pipe, prompt).float().cpu())
    if prompt.dim() not in {1, 2} or prompt.numel() != prompt.shape[-1]:
        raise ShapeMismatch(
            f"a prompt's embedding is one row, [p] or [1,p], got the shape {list(prompt.shape)}"
        )
    embedding = prompt.detach().float().cpu().flatten()
    if not (bool(torch.isfinite(embedding).all()) and bool(embedding.any())):
        raise InvalidArgument("a prompt's embedding is finite and not zero")
    return unit(embedding)
