"""Pictures on the way: what the pipeline itself would decode, when they were asked for, at no cost to the image."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, SampleGroup
from sparke_engine.diffusion.previews import MAX_PREVIEWS, Previews, preview_steps
from sparke_engine.diffusion.toy import ToyEngine, read_toy_image
from sparke_engine.errors import InvalidArgument
from sparke_engine.guidance.presets import preset_named

PLAN = DenoisingPlan(width_px=32, height_px=32, steps=6, guidance_scale=4.0)
FAMILIES = ["sd", "sdxl", "sd3", "flux", "pixart", "sana"]
Load = Callable[[str], PipelineEngine]


class Shown:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.found: list[tuple[int, list[Image.Image]]] = []

    def __call__(self, number: int, images: Any) -> None:
        """As `Previews.show`."""
        self.found.append((number, list(images)))


def silent(done: int, num_steps: int) -> None:
    """An `on_step` that does nothing."""


@pytest.mark.parametrize("family", FAMILIES)
def test_previews_come_in_time_and_change_nothing(load: Load, family: str) -> None:
    """Two of three groups want some: each gets its own, at its own steps; every image is as without them, to the bit."""
    engine, first, second = load(family), Shown(), Shown()
    groups = [SampleGroup("a cat", "", seeds, 0.0, None) for seeds in ((1, 2), (3,), (4,))]
    plain = engine.generate(groups, PLAN, silent)
    groups[0] = replace(groups[0], previews=Previews(2, first))
    groups[2] = replace(groups[2], previews=Previews(1, second))
    told: list[int] = []
    shown = engine.generate(groups, PLAN, lambda _done, _all: told.append(len(first.found)))
    assert [_pixels(part) for part in shown] == [_pixels(part) for part in plain]
    assert [(number, len(images)) for number, images in first.found] == [(0, 2), (1, 2)]
    assert [(number, len(images)) for number, images in second.found] == [(0, 1)]
    assert told == [0, 1, 1, 2, 2, 2]
    size = plain[0][0].image.size
    assert {image.size for _, images in first.found for image in images} == {size}
    one, other = (images[0].tobytes() for _, images in first.found)
    assert one != other


def _pixels(samples: Any) -> list[bytes]:
    return [sample.image.tobytes() for sample in samples]


def test_later_previews_are_nearer_to_the_image(load: Load) -> None:
    """x̂0 goes to the image: the mean distance in pixels falls from preview to preview."""
    engine, shown = load("sd"), Shown()
    group = SampleGroup("a cat", "", (1, 2, 3, 4), 0.0, None, previews=Previews(3, shown))
    (samples,) = engine.generate([group], replace(PLAN, steps=12), silent)
    final = [np.asarray(sample.image, float) for sample in samples]
    distances = [
        np.mean(
            [np.abs(np.asarray(image, float) - end).mean() for image, end in zip(images, final, strict=True)]
        )
        for _, images in shown.found
    ]
    assert len(distances) == 3
    assert distances == sorted(distances, reverse=True)


def test_the_toy_shows_what_it_answers() -> None:
    """Its previews spell the prompt and the seed, as its images do."""
    engine, shown = ToyEngine(preset_named("toy")), Shown()
    group = SampleGroup("a cat", "", (5, 6), 0.5, None, previews=Previews(1, shown))
    (samples,) = engine.generate([group], PLAN, silent)
    [(number, images)] = shown.found
    assert number == 0
    assert [read_toy_image(image) for image in images] == [read_toy_image(one.image) for one in samples]


def test_an_error_of_who_is_shown_comes_out(load: Load) -> None:
    """It is not swallowed, and the engine works on."""
    engine = load("sd")

    def show(_number: int, _images: Any) -> None:
        raise RuntimeError("no")

    group = SampleGroup("a cat", "", (1,), 0.0, None, previews=Previews(1, show))
    with pytest.raises(RuntimeError, match="no"):
        engine.generate([group], PLAN, silent)
    assert len(engine.generate([replace(group, previews=None)], PLAN, silent)[0]) == 1


@given(num_previews=st.integers(0, MAX_PREVIEWS), num_steps=st.integers(1, 200))
def test_previews_are_spread_over_the_steps(num_previews: int, num_steps: int) -> None:
    """Never after the last step, never two at once, as many as fit, at distances that differ by at most one step."""
    steps = preview_steps(num_previews, num_steps)
    assert steps == sorted(set(steps))
    assert len(steps) == min(num_previews, num_steps - 1)
    assert all(0 < step < num_steps for step in steps)
    if len(steps) == num_previews > 0:
        ends = [0, *steps, num_steps]
        gaps = [later - one for one, later in pairwise(ends)]
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("number", [-1, MAX_PREVIEWS + 1])
def test_a_number_of_previews_is_bounded(number: int) -> None:
    """Each costs a decoding."""
    with pytest.raises(InvalidArgument):
        Previews(number, Shown())
