"""Layouts: canonical latents and back, to the bit, against the pipelines' own packing."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor

from sparke_engine.diffusion.families import layout_for
from sparke_engine.diffusion.layouts import (
    NO_CLASS,
    DoubledBatch,
    FramesAsChannels,
    LatentLayout,
    PackedLatents,
)
from sparke_engine.errors import UnsupportedPipeline


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Numbers that are all different."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def packed_layout(height: int, width: int, dtype: torch.dtype = torch.float32) -> PackedLatents:
    """A layout that has seen a denoiser's call for latents of this size."""
    layout = PackedLatents()
    ids = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", dtype)
    layout.observe(noise(1, height * width // 4, 16), {"img_ids": ids})
    return layout


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 12), (16, 6), (2, 2)])
def test_packed_latents_are_the_pipelines_own(height: int, width: int) -> None:
    """FLUX's packing and ours are inverse to each other in both directions, at every shape of an image."""
    latents = noise(3, 4, height, width)
    packed = FluxPipeline._pack_latents(latents, 3, 4, height, width)
    layout = packed_layout(height, width)
    assert torch.equal(layout.canonical(packed), latents)
    assert torch.equal(layout.restored(latents, torch.zeros_like(packed)), packed)


def test_half_precision_ids_tell_a_large_image() -> None:
    """Rows beyond 256 round to one another in bfloat16; the width is counted from the first row alone."""
    layout = packed_layout(1100, 4, torch.bfloat16)
    assert layout.canonical(noise(1, 1100, 16)).shape == (1, 4, 1100, 4)


def test_a_new_size_is_learned() -> None:
    """Each call of the denoiser tells the size anew."""
    layout = packed_layout(8, 4)
    assert layout.canonical(noise(1, 8, 16)).shape == (1, 4, 8, 4)
    ids = FluxPipeline._prepare_latent_image_ids(1, 2, 4, "cpu", torch.float32)
    layout.observe(noise(1, 8, 16), {"img_ids": ids})
    assert layout.canonical(noise(1, 8, 16)).shape == (1, 4, 4, 8)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (PackedLatents(), (1, 16, 16)),  # no call of the denoiser was seen
        (packed_layout(8, 8), (1, 17, 16)),
        (packed_layout(8, 8), (1, 16, 18)),
        (packed_layout(8, 8), (1, 4, 8, 8)),
        (LatentLayout(), (1, 16, 16)),
        (LatentLayout(), (1, 4, 3, 8, 8)),
        (FramesAsChannels(), (1, 4, 8, 8)),
    ],
)
def test_other_shapes_are_refused(layout: LatentLayout, shape: tuple[int, ...]) -> None:
    """What a layout does not know is refused with the shape that was found."""
    with pytest.raises(UnsupportedPipeline, match=rf"\({shape[0]}, {shape[1]}"):
        layout.canonical(noise(*shape))


@pytest.mark.parametrize("layout", [LatentLayout(), DoubledBatch()])
def test_a_learned_variance_is_carried_along(layout: LatentLayout) -> None:
    """The canonical part of an output with twice the channels is its first half; the second stays to the bit."""
    output = noise(2, 8, 4, 4)
    canonical = layout.canonical(output, 4)
    assert torch.equal(canonical, output[:, :4])
    restored = layout.restored(canonical + 1, output)
    assert torch.equal(restored, torch.cat([output[:, :4] + 1, output[:, 4:]], 1))


@pytest.mark.parametrize("shape", [(2, 4, 3, 8, 6), (2, 3, 4, 8, 6)])
def test_a_video_is_one_sample(shape: tuple[int, ...]) -> None:
    """Frames and channels are one axis, and part again."""
    layout, video = FramesAsChannels(), noise(*shape)
    canonical = layout.canonical(video, 12)
    assert canonical.shape == (2, 12, 8, 6)
    assert torch.equal(canonical[:, 4], video.flatten(1, 2)[:, 4])
    assert torch.equal(layout.restored(canonical, torch.zeros_like(video)), video)


def test_a_doubled_batch_is_its_first_half() -> None:
    """Under guidance both halves of DiT's batch are one set of images and move alike."""
    layout, half = DoubledBatch(), noise(2, 4, 8, 8)
    labels = torch.tensor([3, 7, NO_CLASS, NO_CLASS])
    layout.observe(torch.cat([half, half]), {"class_labels": labels})
    batch = torch.cat([half, noise(2, 4, 8, 8, seed=1)])
    assert torch.equal(layout.canonical(batch), half)
    assert torch.equal(layout.restored(half + 1, batch), torch.cat([half + 1, half + 1]))


@pytest.mark.parametrize(
    ("labels", "halves_equal"), [([3, 7, 1, 2], True), ([3, 7, NO_CLASS, NO_CLASS], False), ([3], True)]
)
def test_without_guidance_a_batch_is_not_halved(labels: list[int], *, halves_equal: bool) -> None:
    """Other labels, other latents or an odd batch are images of their own."""
    layout = DoubledBatch()
    latents = noise(1, 4, 8, 8).repeat(len(labels), 1, 1, 1)
    if not halves_equal:
        latents[-1] += 1
    layout.observe(latents, {"class_labels": torch.tensor(labels)})
    assert torch.equal(layout.canonical(latents), latents)


def pipe_named(name: str) -> Any:
    """An object of a class of that name."""
    return type(name, (SimpleNamespace,), {})()


def test_layouts_by_class() -> None:
    """Each pipeline class has its layout, each block one of its own; unknown classes have [b,c,h,w]."""
    assert type(layout_for(pipe_named("FluxPipeline"))) is PackedLatents
    assert type(layout_for(pipe_named("DiTPipeline"))) is DoubledBatch
    assert type(layout_for(pipe_named("WanPipeline"))) is FramesAsChannels
    assert type(layout_for(pipe_named("SomethingPipeline"))) is LatentLayout
    assert layout_for(pipe_named("FluxPipeline")) is not layout_for(pipe_named("FluxPipeline"))
