"""What a prompt kernel sees: the pooled unit embedding of a prompt, from the encoders that the pipeline has anyway.

The embedding follows what the denoiser reads. Where that is the pooled output of CLIP, so is the embedding; where it is
the hidden states of T5 or a language model, which pool nothing, the embedding is their mean over the real tokens; where
it is a class, its one-hot vector. A prompt is always encoded alone, so its embedding never depends on what is encoded
beside it. LoRA layers of a text encoder act as they do in the pipeline's own call at scale 1; an
engine embeds with its own LoRAs off.

Long prompts: what the denoiser does not read does not count. CLIP is cut at its context in SD and SDXL, as in the
pipeline. In SD3 and FLUX, T5 reads on where CLIP is cut; there the pooled outputs of all chunks of CLIP's context, up to
as many tokens as T5 reads, are averaged by their numbers of tokens, so that two prompts that differ in the tail differ.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparke_engine.errors import InvalidArgument, UnsupportedPipeline

Prompt = str | int | Tensor
Embedder = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class PooledText:
    """The pooled outputs of CLIP encoders, one after another; of `encoders` (tokenizer, text encoder).

    `reader`: the (tokenizer, text encoder) that reads on where CLIP is cut, if the pipeline was loaded with it.
    """

    encoders: tuple[tuple[str, str], ...]
    reader: tuple[str, str] | None = None

    def __call__(self, pipe: Any, prompt: Any) -> Float[Tensor, " p"]:
        """Not yet of unit norm; O(one pass of each encoder a chunk)."""
        text, most = _text(prompt), self._most_tokens(pipe)
        parts = []
        for names in self.encoders:
            tokenizer, encoder = _loaded(pipe, *names)
            shown = (
                pipe.maybe_convert_prompt(text, tokenizer) if hasattr(pipe, "maybe_convert_prompt") else text
            )
            parts.append(_pooled(_Clip(tokenizer, encoder, _device_of(pipe, encoder)), shown, most))
        return torch.cat(parts)

    def _most_tokens(self, pipe: Any) -> int:
        """How many tokens of CLIP's count: 0 says one context."""
        if self.reader is None or any(getattr(pipe, name, None) is None for name in self.reader):
            return 0
        return int(_default_of_call(pipe, "max_sequence_length"))


@dataclass(frozen=True)
class HiddenMean:
    """The mean of the last hidden state over the real tokens, for encoders without a pooled output.

    The pipeline's own `encode_prompt` is called with the defaults of its `__call__`: length, cleaning, instructions.
    `names_mask`: it also gives the mask of real tokens; else they are those that the tokenizer did not pad.
    """

    names_mask: bool = False

    def __call__(self, pipe: Any, prompt: Any) -> Float[Tensor, " p"]:
        """Not yet of unit norm. An empty prompt still has its end token."""
        text = _text(prompt)
        tokenizer, _ = _loaded(pipe, "tokenizer", "text_encoder")
        known = inspect.signature(pipe.encode_prompt).parameters
        defaults = {
            name: _default_of_call(pipe, name)
            for name in ("max_sequence_length", "clean_caption", "complex_human_instruction")
            if name in known
        }
        encoded = pipe.encode_prompt(prompt=text, do_classifier_free_guidance=False, **defaults)
        hidden = encoded[0][0].float()
        is_real = encoded[1][0].bool() if self.names_mask else _real_tokens(tokenizer, text, len(hidden))
        mean: Tensor = hidden[is_real.to(hidden.device)].mean(0)
        return mean


def class_label(pipe: Any, prompt: Any) -> Float[Tensor, " p"]:
    """The one-hot vector of a class, given by number or by its name in `pipe.labels`: other classes are no neighbours."""
    label = getattr(pipe, "labels", {}).get(prompt) if isinstance(prompt, str) else prompt
    num_classes = int(pipe.transformer.config.num_embeds_ada_norm)
    if not isinstance(label, int) or not 0 <= label < num_classes:
        raise InvalidArgument(
            f"this pipeline's prompt is a class, a number below {num_classes} or one of its labels, got {prompt!r}"
        )
    embedding = torch.zeros(num_classes)
    embedding[label] = 1.0
    return embedding


def image_embedding(pipe: Any, prompt: Any) -> Float[Tensor, " p"]:
    """For decoders without a text encoder: the caller gives the embedding that the prior made, as a tensor."""
    raise UnsupportedPipeline(
        f"{type(pipe).__name__} reads no text: give the prior's image embedding as the prompt, got {prompt!r}"
    )


class _Clip(NamedTuple):
    """A text encoder with its tokenizer, and the device that its inputs belong on."""

    tokenizer: Any
    encoder: Any
    device: torch.device

    @property
    def context(self) -> int:
        """How many tokens it reads at once."""
        return int(min(self.tokenizer.model_max_length, self.encoder.config.max_position_embeddings))

    def pooled(self, rows: list[list[int]]) -> Float[Tensor, "b p"]:
        """The pooled outputs for token ids."""
        output = self.encoder(torch.tensor(rows, device=self.device))
        pooled: Tensor = output.text_embeds if "text_embeds" in output else output.pooler_output
        return pooled


def _device_of(pipe: Any, encoder: Any) -> torch.device:
    """Where the encoder is; where the pipeline computes if its weights come to a device only for their use (offloading)."""
    own: torch.device = encoder.device
    if own.type != "meta":
        return own
    there: torch.device = pipe._execution_device  # noqa: SLF001 - as the pipeline's own encoding does
    return there


def _pooled(clip: _Clip, text: str, most_tokens: int) -> Float[Tensor, " p"]:
    tokenizer, length = clip.tokenizer, clip.context
    whole = {"padding": "max_length", "max_length": length, "truncation": True}
    if most_tokens <= length:
        return clip.pooled(tokenizer([text], **whole).input_ids)[0]
    words = tokenizer(text, add_special_tokens=False, truncation=True, max_length=most_tokens).input_ids
    room = length - 2
    if len(words) <= room:
        return clip.pooled(tokenizer([text], **whole).input_ids)[0]
    chunks = [words[start : start + room] for start in range(0, len(words), room)]
    rows = [_framed(tokenizer, chunk, length) for chunk in chunks]
    shares = torch.tensor([len(chunk) / len(words) for chunk in chunks])
    outputs = torch.stack([clip.pooled([row])[0] for row in rows])
    return shares.to(outputs) @ outputs


def _framed(tokenizer: Any, words: list[int], length: int) -> list[int]:
    row = [tokenizer.bos_token_id, *words, tokenizer.eos_token_id]
    return row + [tokenizer.pad_token_id] * (length - len(row))


def _real_tokens(tokenizer: Any, text: str, length: int) -> Bool[Tensor, " s"]:
    tokens = tokenizer([text], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    is_real: Tensor = tokens.attention_mask[0].bool()
    return is_real


def _loaded(pipe: Any, tokenizer: str, encoder: str) -> tuple[Any, Any]:
    found = getattr(pipe, tokenizer, None), getattr(pipe, encoder, None)
    if None in found:
        raise UnsupportedPipeline("this pipeline was loaded without the text encoder that embeds prompts")
    return found


def _default_of_call(pipe: Any, name: str) -> Any:
    return inspect.signature(type(pipe).__call__).parameters[name].default


def _text(prompt: Any) -> str:
    if not isinstance(prompt, str):
        raise InvalidArgument(f"this pipeline's prompt is a text or its embedding, got {prompt!r}")
    return prompt
