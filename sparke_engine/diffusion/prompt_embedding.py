"""The pooled unit embedding of a prompt, from the text encoders that the pipeline has anyway."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.kernels import unit
from sparke_engine.errors import UnsupportedPipeline

# Which (tokenizer, text encoder) pairs make the pooled embedding: the ones whose pooled output the denoiser reads;
# Stable Diffusion 1 and 2 read none, so there it is the encoder's own pooled output.
_ENCODERS: dict[str, tuple[tuple[str, str], ...]] = {
    "StableDiffusionPipeline": (("tokenizer", "text_encoder"),),
    "StableDiffusionXLPipeline": (("tokenizer_2", "text_encoder_2"),),
    "StableDiffusion3Pipeline": (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")),
}


def supported_pipelines() -> tuple[str, ...]:
    """Class names of the pipelines whose prompts can be embedded."""
    return tuple(sorted(_ENCODERS))


@torch.no_grad()
def embed_prompt(pipe: Any, prompt: str) -> Float[Tensor, " p"]:
    """The unit embedding of one prompt, fp32 on the CPU.

    A prompt is always encoded alone, so its embedding never depends on what is encoded beside it. Longer than the
    encoder's context, it is cut, as the pipeline itself does. Raises UnsupportedPipeline.
    """
    name = type(pipe).__name__
    if name not in _ENCODERS:
        raise UnsupportedPipeline(
            f"no prompt embedding for {name}; supported: {', '.join(supported_pipelines())}"
        )
    parts = [
        _pooled(getattr(pipe, tokenizer), getattr(pipe, encoder), prompt)
        for tokenizer, encoder in _ENCODERS[name]
    ]
    return unit(torch.cat(parts).float().cpu())


def _pooled(tokenizer: Any, encoder: Any, prompt: str) -> Tensor:
    if tokenizer is None or encoder is None:
        raise UnsupportedPipeline("this pipeline was loaded without the text encoder that embeds prompts")
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    tokens = tokenizer(
        [prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    output = encoder(tokens.input_ids.to(encoder.device))
    pooled: Tensor = output.text_embeds if "text_embeds" in output else output.pooler_output
    return pooled[0]
