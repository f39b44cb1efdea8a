"""Tiny randomly initialised pipelines in diffusers' format; `conftest.py` runs this file, for it takes seconds to load."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CONTEXT = 12


def tiny_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that spells words letter by letter."""
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=CONTEXT)


def tiny_text_config(hidden_size: int = 16) -> CLIPTextConfig:
    """A text tower of two layers."""
    return CLIPTextConfig(
        vocab_size=2 * len(LETTERS) + 2,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        projection_dim=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=2 * len(LETTERS),
        eos_token_id=2 * len(LETTERS) + 1,
    )


def tiny_t5() -> tuple[T5EncoderModel, T5Tokenizer]:
    """An encoder of one layer, and a tokenizer of letters."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((letter, -3.0) for letter in LETTERS),
    ]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=CONTEXT)
    config = T5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config), tokenizer


def tiny_vae(shift_factor: float | None = None, *, channels: int = 4) -> AutoencoderKL:
    """A VAE of factor 4."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=channels,
        shift_factor=shift_factor,
        norm_num_groups=4,
        sample_size=32,
    )


def tiny_unet(cross_attention_dim: int, **more: object) -> UNet2DConditionModel:
    """A UNet for latents 4×8×8."""
    arguments = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(cross_attention_dim=cross_attention_dim, **arguments | more)


def tiny_ddim() -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def tiny_sd() -> StableDiffusionPipeline:
    """Stable Diffusion in miniature."""
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(tiny_text_config()),
        tokenizer=tiny_tokenizer(),
        unet=tiny_unet(16),
        scheduler=tiny_ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_sdxl() -> StableDiffusionXLPipeline:
    """Stable Diffusion XL in miniature."""
    torch.manual_seed(1)
    unet = tiny_unet(
        32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )
    return StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(tiny_text_config()),
        text_encoder_2=CLIPTextModelWithProjection(tiny_text_config()),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=unet,
        scheduler=tiny_ddim(),
    )


def tiny_sd3(*, with_t5: bool = True, channels: int = 4) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 in miniature. Inpainting needs the 16 channels of the real one."""
    torch.manual_seed(2)
    encoder, tokenizer = tiny_t5() if with_t5 else (None, None)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=channels,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=channels,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(shift_factor=0.06, channels=channels),
        text_encoder=CLIPTextModelWithProjection(tiny_text_config()),
        tokenizer=tiny_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(tiny_text_config()),
        tokenizer_2=tiny_tokenizer(),
        text_encoder_3=encoder,
        tokenizer_3=tokenizer,
    )


def save_all(makers: dict[str, Callable[[], Any]], folder: Path) -> dict[str, Path]:
    """Directories of tiny pipelines by family."""
    for family, make in makers.items():
        make().save_pretrained(folder / family, safe_serialization=True)
    return {family: folder / family for family in makers}
