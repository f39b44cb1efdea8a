"""Pictures and latents: what the pipeline's own autoencoder says, in the units that it denoises."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import AutoencoderTiny
from PIL import Image

from sparke_engine import MemoryBank, guided, load_demo_pipeline, remember_pictures
from sparke_engine.diffusion.autoencoding import decoded, encoded
from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, SampleGroup
from sparke_engine.diffusion.pipelines import load_engine
from sparke_engine.diffusion.toy import ToyEngine
from sparke_engine.errors import InvalidArgument, NonFiniteLatents, ShapeMismatch, UnsupportedPipeline
from sparke_engine.guidance.presets import DiversityPreset, preset_named

PLAN = DenoisingPlan(width_px=32, height_px=32, steps=6, guidance_scale=4.0)
FAMILIES = ["sd", "sdxl", "sd3", "flux", "pixart", "sana"]
Load = Callable[[str], PipelineEngine]


def _picture(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_is_the_pipelines_own(load: Load, family: str) -> None:
    """Final latents, decoded by us, are the pipeline's image to a level of rounding."""
    pipe = load(family).pipeline
    asked: dict[str, Any] = {
        "prompt": "a cat",
        "width": PLAN.width_px,
        "height": PLAN.height_px,
        "num_inference_steps": 2,
        **({"use_resolution_binning": False} if family in {"pixart", "sana"} else {}),
    }
    image, latents = (
        pipe(**asked, generator=torch.Generator().manual_seed(1), output_type=kind).images[0]
        for kind in ("pil", "latent")
    )
    with torch.no_grad():
        canonical = latents[None] if family != "flux" else _unpacked(pipe, latents[None])
    [ours] = decoded(pipe, canonical.float())
    assert np.abs(np.asarray(ours, int) - np.asarray(image.convert("RGB"), int)).max() <= 1


def _unpacked(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = pipe._unpack_latents(latents, PLAN.height_px, PLAN.width_px, pipe.vae_scale_factor)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pictures_latents_are_in_the_denoisers_units(load: Load, family: str) -> None:
    """The autoencoder's mode, shifted and scaled as the pipeline's configuration says, and no other picture changes a bit."""
    engine = load(family)
    vae, pictures = engine.pipeline.vae, [_picture(seed) for seed in range(3)]
    with torch.no_grad():
        pixels = torch.stack([torch.tensor(np.array(one)).permute(2, 0, 1) for one in pictures]) / 127.5 - 1
        said = vae.encode(pixels)
        modes = said.latent if family == "sana" else said.latent_dist.mode()
    expected = (modes - (getattr(vae.config, "shift_factor", None) or 0)) * vae.config.scaling_factor
    found = encoded(engine.pipeline, pictures)
    torch.testing.assert_close(
        torch.cat(found), expected, rtol=1e-3, atol=1e-4
    )  # one at a time, and all at once
    assert torch.equal(encoded(engine.pipeline, pictures[1:2])[0], found[1])
    features = engine.encode_pictures(pictures)
    assert features.shape == (3, engine.feature_dim)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    assert torch.equal(engine.encode_pictures(pictures[2:]), features[2:])


def test_a_channels_own_units_go_both_ways(load: Load) -> None:
    """An autoencoder with a mean and a deviation for each channel: what is encoded is what its pipeline would decode."""
    pipe = load("sdxl").pipeline
    (plain,) = encoded(pipe, [_picture(1)])
    means, deviations = [0.5, -1.0, 0.0, 2.0], [2.0, 0.5, 1.0, 4.0]
    pipe.vae.register_to_config(latents_mean=means, latents_std=deviations)
    (found,) = encoded(pipe, [_picture(1)])
    scale, shape = pipe.vae.config.scaling_factor, (1, 4, 1, 1)
    expected = (plain - scale * torch.tensor(means).view(shape)) / torch.tensor(deviations).view(shape)
    torch.testing.assert_close(found, expected)
    stock = pipe(
        "a cat",
        latents=found,
        num_inference_steps=1,
        timesteps=None,
        width=32,
        height=32,
        output_type="latent",
    ).images
    [ours] = decoded(pipe, stock.float())
    image = pipe("a cat", latents=found, num_inference_steps=1, width=32, height=32).images[0]
    assert np.abs(np.asarray(ours, int) - np.asarray(image, int)).max() <= 1


def test_a_tiny_autoencoder_encodes(load: Load) -> None:
    """One that says latents and no distribution, as users put it in for speed."""
    pipe = load("sd").pipeline
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    pipe.register_modules(vae=AutoencoderTiny(**widths, **blocks).eval())
    (found,) = encoded(pipe, [_picture(1)])
    pixels = torch.tensor(np.array(_picture(1))).permute(2, 0, 1)[None] / 127.5 - 1
    torch.testing.assert_close(found, pipe.vae.encode(pixels).latents.detach())


def test_an_offloaded_autoencoder_encodes(load: Load) -> None:
    """Its weights are nowhere while it rests; pictures go where it will compute."""
    plain, offloaded = load("sd").pipeline, load("sd").pipeline
    cpu_offload(offloaded.vae, torch.device("cpu"), offload_buffers=True)
    assert offloaded.vae.device.type == "meta"
    assert torch.equal(encoded(offloaded, [_picture(1)])[0], encoded(plain, [_picture(1)])[0])


def test_an_overflow_is_no_memory(load: Load) -> None:
    """What is not finite is refused: an entry of it would break every image that it is near to."""
    pipe, bank = load("sd").pipeline, MemoryBank()
    with torch.no_grad():
        pipe.vae.quant_conv.bias.fill_(torch.inf)
    with pytest.raises(NonFiniteLatents, match="overflowed"):
        remember_pictures(pipe, bank, [_picture(1)])
    assert len(bank) == 0


def test_an_image_that_was_made_is_found_where_it_was() -> None:
    """With the demo model: a made image, encoded as a picture, has nearly the feature that the memory has of it."""
    engine = load_engine("builtin:demo", preset=preset_named("demo-fine"))
    group = SampleGroup("a red star", "", (1, 2, 3, 4), 0.0, None)
    (samples,) = engine.generate([group], DenoisingPlan(64, 64, 8, 5.0), lambda _done, _all: None)
    features = engine.encode_pictures([sample.image for sample in samples])
    cosines = features @ torch.stack([sample.feature for sample in samples]).T
    assert cosines.diagonal().min() > 0.9, "the autoencoder is no exact inverse"
    assert torch.equal(cosines.argmax(1), torch.arange(4))


def test_a_library_user_leads_away_from_pictures() -> None:
    """A bank is filled with pictures, and a guided block reads it as the memory of images that were made."""
    pipe, bank = load_demo_pipeline(), MemoryBank()
    pictures = [pipe("a red star", num_inference_steps=4).images[0] for _ in range(2)]
    remember_pictures(pipe, bank, pictures, "a red star")
    assert len(bank) == 2
    with guided(pipe, bank, "a red star") as guide:
        pipe("a red star", num_inference_steps=4)
    assert guide.runs[0].pushes.min() > 0
    assert len(bank) == 3
    remember_pictures(pipe, bank, [])
    assert len(bank) == 3


@pytest.mark.parametrize("size", [(33, 32), (32, 31), (1, 1)])
def test_sides_are_checked(load: Load, size: tuple[int, int]) -> None:
    """Rather than cut by the autoencoder, or an error from inside."""
    with pytest.raises(InvalidArgument, match="multiples of"):
        load("sd").encode_pictures([_picture(1, size)])


def test_pictures_have_one_size_where_latents_are_kept_whole(
    load: Load, model_directories: dict[str, Path]
) -> None:
    """A feature of another length would fit no memory of the model's."""
    whole = DiversityPreset(grid=None, eta=0.8, window=0.5, latent_bandwidth=2.0, max_push=10)
    engine = load_engine(str(model_directories["sd"]), preset=whole)
    with pytest.raises(ShapeMismatch, match="the model's own size"):
        engine.encode_pictures([_picture(1, (96, 32))])
    pipe, bank = load("sd").pipeline, MemoryBank()
    with pytest.raises(ShapeMismatch, match="one size"):
        remember_pictures(pipe, bank, [_picture(1), _picture(1, (64, 32))], preset=whole)
    assert len(bank) == 0


def test_the_toy_finds_its_own_pictures() -> None:
    """Equal pictures have equal features, others others, of the length that memories have."""
    toy = ToyEngine(preset_named("toy"))
    features = toy.encode_pictures([_picture(1, (64, 64)), _picture(2, (64, 64)), _picture(1, (64, 64))])
    assert features.shape == (3, toy.feature_dim)
    assert torch.equal(features[0], features[2])
    assert float(features[0] @ features[1]) < 0.9
    assert toy.encode_pictures([]).shape == (0, toy.feature_dim)


def test_a_pipeline_without_an_autoencoder_says_so(load: Load) -> None:
    """Rather than an AttributeError from inside."""
    pipe = load("sd").pipeline
    pipe.register_modules(vae=None)
    with pytest.raises(UnsupportedPipeline, match="autoencoder"):
        decoded(pipe, torch.zeros(1, 4, 4, 4))


@pytest.mark.parametrize(
    ("side_px", "is_sliced", "batches"), [(736, False, [1, 1]), (32, False, [2]), (32, True, [1, 1])]
)
def test_large_images_are_decoded_one_at_a_time(
    load: Load, side_px: int, batches: list[int], *, is_sliced: bool
) -> None:
    """What decoding needs of the device is then that of one image; small ones go together, as the pipeline has it."""
    engine = load("sana")
    vae, seen = engine.pipeline.vae, []
    vae.use_slicing = is_sliced
    vae.decoder.register_forward_hook(lambda _decoder, inputs, _output: seen.append(len(inputs[0])))
    plan = replace(PLAN, width_px=side_px, height_px=side_px, steps=1)
    [samples] = engine.generate([SampleGroup("a cat", "", (1, 2), 0.0, None)], plan, lambda *_: None)
    assert seen == batches
    assert vae.use_slicing is is_sliced
    assert [each.image.size for each in samples] == [(side_px, side_px)] * 2


def test_half_precision_is_left_where_it_would_overflow(load: Load) -> None:
    """An autoencoder that its configuration wants upcast is decoded in fp32, and is in half again afterwards."""
    vae = load("sdxl").pipeline.vae
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    [expected] = decoded(load("sdxl").pipeline, latents)
    pipe = load("sdxl").pipeline
    pipe.vae.register_to_config(force_upcast=True)
    pipe.vae.half()
    [found] = decoded(pipe, latents)
    assert pipe.vae.dtype == torch.float16
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 2  # its weights were rounded
    assert vae.dtype == torch.float32
