"""Ambient Vendi guidance: the gradient through decoder and encoder, the bank of embeddings, a real pipeline."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparke_engine.baselines import AmbientVendi, decoder_of, make_rival
from sparke_engine.baselines.rival import Seen
from sparke_engine.core.kernels import unit
from sparke_engine.diffusion.autoencoding import decoded
from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, SampleGroup
from sparke_engine.diffusion.guide import GuidedGroup
from sparke_engine.diffusion.pipelines import load_engine
from sparke_engine.errors import InvalidArgument
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries, Prompts
from sparke_engine.memory_bank import MemoryBank

Latents = Callable[..., Tensor]
See = Callable[..., Seen]
PROMPT = unit(torch.tensor([1.0, 2.0, 0.5]))
NEAR = unit(torch.tensor([1.0, 2.0, 0.7]))


def decode(latents: Tensor) -> Tensor:
    """Something smooth."""
    return torch.tanh(latents[:, :3] - latents[:, 1:])


def encode(pictures: Tensor) -> Tensor:
    """Seven numbers of a picture."""
    weights = torch.randn(7, 48, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.sin(pictures.flatten(1) @ weights.to(pictures).mT)


def bank_of(number: int) -> MemoryBank:
    """Embeddings of past images, of two prompts in turn."""
    bank = MemoryBank()
    rows = torch.randn(number, 7, generator=torch.Generator().manual_seed(5))
    bank.append(rows, torch.stack([PROMPT, NEAR])[torch.arange(number) % 2])
    return bank


def entropy(rows: Tensor, weights: Tensor) -> Tensor:
    """H₁ of the weighted Gram matrix, by its eigenvalues."""
    scaled = (weights / weights.sum()).sqrt()[:, None] * unit(rows)
    values = torch.linalg.eigvalsh(scaled @ scaled.mT).clamp_min(0)
    return -torch.xlogy(values, values).sum()


def asked(seen: Seen) -> Seen:
    """The same, with a group whose entries tell its prompt."""
    nothing = seen.entries
    entries = Entries(nothing.features, nothing.weights, Prompts(PROMPT, torch.zeros(0, 3)))
    preset = DiversityPreset(grid=(2, 2), prompt_bandwidth=0.3)
    return seen._replace(group=GuidedGroup(slice(None), preset, 1.0, entries))


@pytest.mark.parametrize("context", [0.0, 0.4])
def test_a_push_is_the_gradient(latents_of: Latents, seen_of: See, context: float) -> None:
    """−δ has the size η‖x̂0‖ and, image by image, autograd's direction through eigenvalues, encoder and decoder."""
    clean, bank = latents_of(0, 2, torch.float64), bank_of(5)
    exemplars = torch.randn(4, 7, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    rival = AmbientVendi(decode, encode, bank, exemplars, context_weight=context, eta=0.02)
    delta = rival.push(asked(seen_of(clean)))
    nearness = torch.exp(-(PROMPT - bank.prompt_embeddings).square().sum(1) / 0.3**2).double()
    moving = clean.clone().requires_grad_()
    made = encode(decode(moving))
    value = entropy(torch.cat([made, bank.features.double()]), torch.cat([torch.ones(2), nearness]))
    value = value - context * entropy(torch.cat([made, exemplars]), torch.ones(6).double())
    (gradient,) = torch.autograd.grad(value, moving)
    for image in range(2):
        size = float(delta[image].norm())
        assert size == pytest.approx(0.02 * float(clean[image].norm()))
        expected = gradient[image] / gradient[image].norm()
        torch.testing.assert_close(-delta[image] / size, expected, rtol=1e-5, atol=1e-6)  # the bank is fp32


def test_who_counts(latents_of: Latents, seen_of: See) -> None:
    """Without a prompt only fellow images count; above the cap the newest entries do; a lone image is not moved."""
    clean = latents_of(0, 2)
    alone = AmbientVendi(decode, encode, MemoryBank())
    pushed = AmbientVendi(decode, encode, bank_of(6), max_entries=2)
    assert torch.equal(pushed.push(seen_of(clean)), alone.push(seen_of(clean)))
    last = MemoryBank()
    last.append(bank_of(6).features[4:], bank_of(6).prompt_embeddings[4:])
    few = AmbientVendi(decode, encode, last).push(asked(seen_of(clean)))
    torch.testing.assert_close(pushed.push(asked(seen_of(clean))), few)
    assert not torch.allclose(few, alone.push(seen_of(clean)))
    assert not alone.push(seen_of(clean[:1])).any()


def test_the_prompt_is_the_groups(latents_of: Latents, seen_of: See) -> None:
    """A group that has no latent entries yet is told its prompt all the same, and the bank counts by it."""
    clean, rival = latents_of(0, 2), AmbientVendi(decode, encode, bank_of(6))
    expected = rival.push(asked(seen_of(clean)))
    told = asked(seen_of(clean))
    group = replace(told.group, entries=None, prompt_embedding=3 * PROMPT)
    torch.testing.assert_close(rival.push(told._replace(group=group)), expected)


def test_a_blind_preset_counts_the_whole_bank(latents_of: Latents, seen_of: See) -> None:
    """Where the preset is blind to prompts each of the bank's newest counts once, whatever its prompt and the group's."""
    clean, bank, same = latents_of(0, 2), bank_of(6), MemoryBank()
    same.append(bank.features[2:], PROMPT.expand(4, -1))
    expected = AmbientVendi(decode, encode, same).push(asked(seen_of(clean)))
    seen = seen_of(clean)
    blind = DiversityPreset(grid=(2, 2), conditional=False, min_prompt_kernel=0.0, max_neighbours=2)
    for entries, prompt in ((None, None), (None, -PROMPT), (seen.entries, None)):
        group = GuidedGroup(slice(None), blind, 1.0, entries, prompt_embedding=prompt)
        pushed = AmbientVendi(decode, encode, bank, max_entries=4).push(seen._replace(group=group))
        torch.testing.assert_close(pushed, expected)


def test_what_coincides_is_not_pushed(latents_of: Latents, seen_of: See) -> None:
    """Images and a past that all coincide have no direction: rounding is not blown up to a push."""
    clean = latents_of(0, 1).expand(3, -1, -1, -1).clone()
    bank = MemoryBank()
    bank.append(encode(decode(clean)), PROMPT.expand(3, -1))
    assert not AmbientVendi(decode, encode, bank).push(asked(seen_of(clean))).any()


def test_window_and_interval(latents_of: Latents, seen_of: See) -> None:
    """Outside the window, between intervals and at eta 0 nothing is decoded."""
    rival = AmbientVendi(decode, encode, MemoryBank(), window=0.3, interval=2)
    pushes = [rival.push(seen_of(latents_of(0), index=index)) is not None for index in range(5)]
    assert pushes == [True, False, True, False, False]
    assert AmbientVendi(decode, encode, MemoryBank(), eta=0.0).push(seen_of(latents_of(0))) is None


@pytest.mark.parametrize(
    "wrong",
    [{"eta": -1.0}, {"window": 0.0}, {"interval": 0}, {"max_entries": True}, {"context_weight": -1.0}],
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    """Parameters out of their domain, and a rival by name without what it needs, are InvalidArgument."""
    with pytest.raises(InvalidArgument):
        AmbientVendi(decode, encode, MemoryBank(), **wrong)
    with pytest.raises(InvalidArgument, match="encode"):
        make_rival("ambient", decode=decode, bank=MemoryBank())


def silent(done: int, num_steps: int) -> None:
    """An `on_step` that does nothing."""


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_on_a_pipeline(model_directories: dict[str, Path], family: str) -> None:
    """Through a pipeline's own autoencoder images change, depend on their group alone, and eta 0 is stock to the bit."""
    engine = load_engine(str(model_directories[family]), preset=DiversityPreset(grid=(4, 4)))
    assert isinstance(engine, PipelineEngine)
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.SiLU(), nn.Flatten(), nn.LazyLinear(16))
    pictures = decoder_of(engine.pipeline)
    tower(pictures(torch.zeros(1, 4, 8, 8)))
    plan = DenoisingPlan(width_px=32, height_px=32, steps=4, guidance_scale=5.0)

    def made(eta: float, other: str) -> list[bytes]:
        engine.method = make_rival(
            "ambient", decode=pictures, encode=tower, bank=MemoryBank(), eta=eta, window=1.0
        )
        groups = [SampleGroup("a cat", "", (1, 2), 1.0, None), SampleGroup(other, "", (3,), 1.0, None)]
        first, _ = engine.generate(groups, plan, silent)
        return [sample.image.tobytes() for sample in first]

    stock = made(0.0, "dogs")
    pushed = made(0.3, "dogs")
    assert all(one != other for one, other in zip(pushed, stock, strict=True))
    assert pushed == made(0.3, "zebras")
    assert not any(parameter.grad is not None for parameter in tower.parameters())


def test_a_decoded_picture_is_the_pipelines(model_directories: dict[str, Path]) -> None:
    """`decoder_of` gives what the pipeline itself shows of its latents."""
    engine = load_engine(str(model_directories["sd3"]), preset=DiversityPreset(grid=(4, 4)))
    assert isinstance(engine, PipelineEngine)
    arguments = {"prompt": "a cat", "height": 32, "width": 32, "num_inference_steps": 2}
    kinds = {}
    for kind in ("latent", "pt"):
        generator = torch.Generator().manual_seed(0)
        kinds[kind] = engine.pipeline(**arguments, generator=generator, output_type=kind).images
    with torch.no_grad():
        shown = decoder_of(engine.pipeline)(kinds["latent"]).clamp(0, 1)
    torch.testing.assert_close(shown, kinds["pt"])


def test_a_decoder_knows_each_channels_units(model_directories: dict[str, Path]) -> None:
    """Where the autoencoder has a mean and a deviation for each channel, pictures are those of the engine's own decoding."""
    engine = load_engine(str(model_directories["sdxl"]), preset=DiversityPreset(grid=(4, 4)))
    assert isinstance(engine, PipelineEngine)
    pipe = engine.pipeline
    numbers = range(1, 1 + pipe.vae.config.latent_channels)
    pipe.vae.register_to_config(
        latents_mean=[0.3 * number for number in numbers], latents_std=[0.5 + number for number in numbers]
    )
    latents = torch.randn(2, len(numbers), 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        shown = decoder_of(pipe)(latents).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    for picture, expected in zip(shown, decoded(pipe, latents), strict=True):
        assert (picture == np.asarray(expected)).all()


def test_an_autoencoder_that_overflows_in_half_is_asked_in_full(model_directories: dict[str, Path]) -> None:
    """Pictures and their gradient by the latents are those in fp32, and the pipeline's own autoencoder stays in half."""
    engine = load_engine(str(model_directories["sdxl"]), dtype="float16", preset=DiversityPreset(grid=(4, 4)))
    assert isinstance(engine, PipelineEngine)
    pipe = engine.pipeline
    pipe.vae.register_to_config(force_upcast=True)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    full, found = copy.deepcopy(pipe.vae).float(), []
    for decode in (decoder_of(pipe), lambda z: (full.decode(z / full.config.scaling_factor).sample + 1) / 2):
        moving = latents.clone().requires_grad_()
        pictures = decode(moving)
        found.append((pictures.detach(), torch.autograd.grad(pictures.square().sum(), moving)[0]))
        assert pipe.vae.dtype == torch.float16
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
