"""Prompt embeddings: by hand from the encoders, and for prompts that are long, empty, classes or tensors."""

import inspect
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from torch import Tensor

from sparke_engine import MemoryBank, guided
from sparke_engine.core.kernels import unit
from sparke_engine.diffusion.families import embed_prompt
from sparke_engine.errors import InvalidArgument, UnsupportedPipeline

families = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "tiny_families.py")))
tiny = families.tiny
CONTEXT = tiny.CONTEXT
LONG = "ab " * CONTEXT


def loaded(make: Any) -> Any:
    """A tiny pipeline, ready to run."""
    pipe = make()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe


def hidden_mean(pipe: Any, text: str) -> Tensor:
    """The mean over a prompt's tokens, of which none is padding."""
    ids = pipe.tokenizer([text], return_tensors="pt").input_ids
    with torch.no_grad():
        return unit(pipe.text_encoder(ids)[0][0].mean(0))


def pooled(pipe: Any, text: str) -> Tensor:
    """The pooled output of the first encoder for a text that fits its context."""
    ids = pipe.tokenizer([text], padding="max_length", max_length=CONTEXT, return_tensors="pt").input_ids
    assert ids.shape == (1, CONTEXT)
    with torch.no_grad():
        output = pipe.text_encoder(ids)
    return (output.text_embeds if "text_embeds" in output else output.pooler_output)[0]


@pytest.mark.parametrize("make", [families.tiny_pixart, families.tiny_wan])
@pytest.mark.parametrize("text", ["a cat", "zebras", ""])
def test_hidden_states_are_averaged_over_real_tokens(make: Any, text: str) -> None:
    """Padding, which the mask hides, does not count: the mean is that of the tokens encoded without any."""
    pipe = loaded(make)
    torch.testing.assert_close(embed_prompt(pipe, text), hidden_mean(pipe, text), rtol=0, atol=1e-5)


def test_padding_that_the_encoder_reads_is_not_averaged() -> None:
    """CogVideoX hides no padding from T5; the mean is over the prompt's own tokens all the same."""
    pipe = loaded(families.tiny_cogvideox)
    length = inspect.signature(type(pipe).__call__).parameters["max_sequence_length"].default
    tokens = pipe.tokenizer(["a cat"], padding="max_length", max_length=length, return_tensors="pt")
    with torch.no_grad():
        hidden = pipe.text_encoder(tokens.input_ids)[0][0]
    expected = unit(hidden[: int(tokens.attention_mask.sum())].mean(0))
    torch.testing.assert_close(embed_prompt(pipe, "a cat"), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_sana_reads_its_instruction_before_the_prompt() -> None:
    """The tokens are those that the denoiser reads, encoded after the instruction that the call has by default."""
    pipe = loaded(families.tiny_sana)
    instruction = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
    hidden, mask, _, _ = pipe.encode_prompt(
        "a cat", do_classifier_free_guidance=False, complex_human_instruction=instruction
    )
    expected = unit(hidden[0][mask[0].bool()].mean(0))
    torch.testing.assert_close(embed_prompt(pipe, "a cat"), expected, rtol=0, atol=1e-6)
    bare, mask, _, _ = pipe.encode_prompt("a cat", do_classifier_free_guidance=False)
    assert float(unit(bare[0][mask[0].bool()].mean(0)) @ expected) < 0.999


@pytest.mark.parametrize("make", [tiny.tiny_sd, tiny.tiny_sdxl, lambda: tiny.tiny_sd3(with_t5=False)])
def test_what_is_cut_does_not_count(make: Any) -> None:
    """Where nothing reads on behind CLIP's context, prompts that differ there alone are one prompt."""
    pipe = loaded(make)
    assert torch.equal(embed_prompt(pipe, LONG), embed_prompt(pipe, LONG + "zebras"))
    assert not torch.equal(embed_prompt(pipe, LONG), embed_prompt(pipe, "zebras " + LONG))


@pytest.mark.parametrize("make", [tiny.tiny_sd3, families.tiny_flux])
def test_what_t5_reads_counts(make: Any) -> None:
    """Where T5 reads on, prompts that differ in the tail differ, up to T5's length."""
    pipe = loaded(make)
    assert float(embed_prompt(pipe, LONG) @ embed_prompt(pipe, LONG + "zebras and llamas")) < 0.9999
    length = inspect.signature(type(pipe).__call__).parameters["max_sequence_length"].default
    beyond = "ab " * (length // 2)
    assert torch.equal(embed_prompt(pipe, beyond), embed_prompt(pipe, beyond + "zebras"))


def test_chunks_are_averaged_by_their_tokens() -> None:
    """Ten letters fill a context; of fifteen, the first chunk weighs two thirds."""
    pipe = loaded(families.tiny_flux)
    first, second = "ab " * 5, "cd " * 2
    assert len(pipe.tokenizer(first + second, add_special_tokens=False).input_ids) == 14
    expected = unit(pooled(pipe, first) * 10 / 14 + pooled(pipe, second) * 4 / 14)
    torch.testing.assert_close(embed_prompt(pipe, first + second), expected, rtol=0, atol=1e-6)
    assert torch.equal(embed_prompt(pipe, first), unit(pooled(pipe, first)))


def test_a_learned_token_is_expanded_as_in_the_pipeline() -> None:
    """A textual inversion of two vectors counts as the two tokens that the denoiser reads."""
    pipe = loaded(tiny.tiny_sd)
    pipe.tokenizer.add_tokens(["<cat>", "<cat>_1"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    expanded = pipe.maybe_convert_prompt("a <cat>", pipe.tokenizer)
    assert expanded == "a <cat> <cat>_1"
    ids = pipe.tokenizer([expanded], padding="max_length", max_length=CONTEXT, return_tensors="pt").input_ids
    assert len(pipe.tokenizer) - 1 in ids
    with torch.no_grad():
        expected = unit(pipe.text_encoder(ids).pooler_output[0])
    assert torch.equal(embed_prompt(pipe, "a <cat>"), expected)


def test_classes() -> None:
    """A class is its one-hot vector, by number or by any of its names; other prompts are refused."""
    pipe = loaded(families.tiny_dit)
    goldfish = embed_prompt(pipe, 1)
    assert torch.equal(goldfish, torch.eye(1000)[1])
    assert torch.equal(goldfish, embed_prompt(pipe, "goldfish"))
    assert torch.equal(embed_prompt(pipe, "fish"), embed_prompt(pipe, 0))
    for wrong in ("a cat", -1, 1000):
        with pytest.raises(InvalidArgument, match="number below 1000"):
            embed_prompt(pipe, wrong)


def test_prompts_that_are_refused() -> None:
    """A decoder without a text encoder reads no text, text encoders read no numbers, an embedding is finite and not zero."""
    decoder = families.d.KandinskyV22Pipeline(**families.tiny_kandinsky_parts())
    with pytest.raises(UnsupportedPipeline, match="image embedding"):
        embed_prompt(decoder, "a cat")
    for wrong in (torch.zeros(4), torch.tensor([1.0, torch.nan])):
        with pytest.raises(InvalidArgument, match="finite and not zero"):
            embed_prompt(decoder, wrong)
    for make in (tiny.tiny_sd, families.tiny_pixart):
        with pytest.raises(InvalidArgument, match="a text or its embedding"):
            embed_prompt(make(), 3)
    with pytest.raises(UnsupportedPipeline, match="supported: AnimateDiff"):
        embed_prompt(SimpleNamespace(), "a cat")


@pytest.mark.parametrize("way", ["sequential", "model"])
@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "FluxPipeline", "PixArtSigmaPipeline"])
def test_offloaded_encoders(name: str, way: str) -> None:
    """Where accelerate brings weights to the device only for their use, embeddings and guided images are what they were."""
    case = next(case for case in families.CASES if case.name == name)
    plain, offloaded = case.load(), case.load()
    hook = None
    for part in offloaded.components.values():
        if isinstance(part, torch.nn.Module) and way == "sequential":
            cpu_offload(part, torch.device("cpu"), offload_buffers=True)
        elif isinstance(part, torch.nn.Module):
            _, hook = cpu_offload_with_hook(part, torch.device("cpu"), prev_module_hook=hook)
    assert torch.equal(embed_prompt(offloaded, "a cat"), embed_prompt(plain, "a cat"))
    made = []
    for pipe in (plain, offloaded):
        with guided(pipe, MemoryBank(), case.prompt, strength=1.0) as guide:
            pipe(**case.arguments((1, 2), steps=2))
        made.append(guide.runs[0].latents)
    assert torch.equal(*made)
