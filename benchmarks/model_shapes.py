"""Pipelines of the true size of published models, made from their configurations; their weights are for others to fill in.

`FAMILIES[name].make()` takes no memory, and has the exact number of parameters. Tokenizers are those of the tests: they spell
words letter by letter, to the models' own lengths.
"""

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers as d
import torch
import transformers as t
from torch import nn
from unet_cost import UNET

TINY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "tests" / "tiny_families.py")))
_LETTERS = 2 * len(TINY.tiny.LETTERS)

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
SD3 = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
PIXART = {
    "sample_size": 128,
    "caption_channels": 4096,
    "interpolation_scale": 2,
    "use_additional_conditions": False,
}


@dataclass(frozen=True)
class Family:
    """A published model.

    `make` is its pipeline at the true size, `tiny` one with the same parts. `dtype` is what it usually runs in, `stored`
    what the plain weights of its repository are in, which are the ones that a worker downloads.
    """

    make: Callable[[], Any]
    tiny: Callable[[], Any]
    dtype: str
    stored: str
    side_px: int
    guidance_scale: float


def num_parameters(pipe: Any) -> dict[str, int]:
    """Of each part that has any."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return {name: sum(each.numel() for each in part.parameters()) for name, part in parts.items()}


def _sd15() -> Any:
    return d.StableDiffusionPipeline(
        vae=_vae(sample_size=512),
        unet=_empty(d.UNet2DConditionModel, sample_size=64, cross_attention_dim=768),
        scheduler=TINY.tiny.tiny_ddim(),
        text_encoder=_empty(t.CLIPTextModel, _clip(CLIP_L, "quick_gelu")),
        tokenizer=_clip_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> Any:
    return d.StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025, force_upcast=True),
        unet=_empty(d.UNet2DConditionModel, **UNET),
        scheduler=d.EulerDiscreteScheduler(),
        text_encoder=_empty(t.CLIPTextModel, _clip(CLIP_L, "quick_gelu")),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_empty(t.CLIPTextModelWithProjection, _clip(CLIP_G, "gelu")),
        tokenizer_2=_clip_tokenizer(),
        add_watermarker=False,
    )


def _sd3() -> Any:
    return d.StableDiffusion3Pipeline(
        transformer=_empty(d.SD3Transformer2DModel, **SD3),
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae16(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=_empty(t.CLIPTextModelWithProjection, _clip(CLIP_L, "quick_gelu")),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_empty(t.CLIPTextModelWithProjection, _clip(CLIP_G, "gelu")),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=_t5(),
        tokenizer_3=_t5_tokenizer(),
    )


def _flux() -> Any:
    return d.FluxPipeline(
        transformer=_empty(d.FluxTransformer2DModel, guidance_embeds=True),
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae16(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=_empty(t.CLIPTextModel, _clip(CLIP_L, "quick_gelu")),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(),
    )


def _pixart() -> Any:
    return d.PixArtSigmaPipeline(
        transformer=_empty(d.PixArtTransformer2DModel, **PIXART),
        vae=_vae(scaling_factor=0.13025),
        scheduler=d.DPMSolverMultistepScheduler(),
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(),
    )


def _empty(network: Callable[..., Any], *config: Any, **fields: Any) -> Any:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return network(*config, **fields)


def _vae(**config: Any) -> d.AutoencoderKL:
    sides = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 1024}
    return _empty(
        d.AutoencoderKL,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        **sides | config,
    )


def _vae16(**config: Any) -> d.AutoencoderKL:
    return _vae(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **config)


def _clip(size: dict[str, int], activation: str) -> t.CLIPTextConfig:
    """The ids of the tokenizer's marks, in a vocabulary of the true size."""
    ends = {"bos_token_id": _LETTERS, "eos_token_id": _LETTERS + 1}
    return t.CLIPTextConfig(
        vocab_size=49_408,
        max_position_embeddings=77,
        projection_dim=size["hidden_size"],
        hidden_act=activation,
        **size,
        **ends,
    )


def _t5() -> t.T5EncoderModel:
    return _empty(t.T5EncoderModel, t.T5Config(vocab_size=32_128, feed_forward_proj="gated-gelu", **T5_XXL))


def _clip_tokenizer() -> t.CLIPTokenizer:
    tokenizer = TINY.tiny.tiny_tokenizer()
    tokenizer.model_max_length = 77
    return tokenizer


def _t5_tokenizer() -> t.T5Tokenizer:
    _encoder, tokenizer = TINY.tiny.tiny_t5()
    tokenizer.model_max_length = 512
    return tokenizer


FAMILIES = {
    "sdxl": Family(_sdxl, TINY.tiny.tiny_sdxl, "float16", "float32", 1024, 5.0),
    "flux": Family(_flux, TINY.tiny_flux, "bfloat16", "bfloat16", 1024, 3.5),
    "sd3": Family(_sd3, TINY.tiny.tiny_sd3, "float16", "float16", 1024, 7.0),
    "pixart": Family(_pixart, TINY.tiny_pixart, "float16", "float32", 1024, 4.5),
    "sd": Family(_sd15, TINY.tiny.tiny_sd, "float16", "float32", 512, 7.5),
}
