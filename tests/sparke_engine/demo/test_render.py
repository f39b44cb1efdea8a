"""Pictures of scenes: what is drawn is what the judge, trained on other draws, sees."""

import math
from dataclasses import replace

import pytest
import torch

from sparke_engine.demo.captions import caption_table
from sparke_engine.demo.evaluate import judge_pictures
from sparke_engine.demo.export import load_judge
from sparke_engine.demo.render import BACKGROUND_RGB, OBJECT_RGB, SIZE_PX, render
from sparke_engine.demo.scene import ATTRIBUTES, COLOURS, SHAPES, Scenes
from sparke_engine.demo.training_data import ExampleSource

CPU = torch.device("cpu")
RADIUS_PX = 18.0
# Areas over radius²; the outlines' own numbers, by school geometry.
AREAS = {
    "circle": math.pi * 0.92**2,
    "square": (2 * 0.76) ** 2,
    "triangle": 3 * math.sqrt(3) * 0.52**2,
    "star": 5 * 1.05 * 0.46 * math.sin(math.pi / 5),
    "cross": 2 * (2 * 0.96) * (2 * 0.31) - (2 * 0.31) ** 2,
    "heart": 1.0 + math.pi * 0.5**2,
    "ring": math.pi * (0.94**2 - 0.50**2),
}


def plain_scenes(shapes: torch.Tensor, colour: int, background: int) -> Scenes:
    """Untinted, upright, plain objects in the middle of the picture."""
    size = len(shapes)
    zeros = torch.zeros(size)
    return Scenes(
        shape=shapes,
        colour=torch.full((size,), colour),
        background=torch.full((size,), background),
        texture=torch.zeros(size, dtype=torch.int64),
        radius_px=torch.full((size,), RADIUS_PX),
        centre_px=torch.full((size, 2), SIZE_PX / 2),
        angle=zeros,
        texture_angle=zeros,
        texture_phase=torch.zeros(size, 2),
        tint=torch.zeros(size, 2, 3),
    )


def test_the_judge_sees_what_was_drawn() -> None:
    """On 512 fresh renders every attribute is right in 99 of 100, and no single value is the exception."""
    examples = ExampleSource(caption_table(), device=CPU, seed=20_771).draw_uniform(512)
    right = judge_pictures(load_judge(CPU), examples.pictures).attributes == examples.attributes
    for column, (name, values) in enumerate(ATTRIBUTES.items()):
        assert right[:, column].float().mean() >= 0.99, name
        for index, value in enumerate(values):
            drawn = examples.attributes[:, column] == index
            assert drawn.sum() >= 30, value
            assert right[drawn, column].float().mean() >= 0.9, value


def test_pictures_are_pictures() -> None:
    """float32 [b,3,64,64] in [0,1], equal for one seed and different for another."""
    draws = [
        ExampleSource(caption_table(), device=CPU, seed=seed).draw_uniform(8).pictures for seed in (1, 1, 2)
    ]
    assert draws[0].shape == (8, 3, SIZE_PX, SIZE_PX)
    assert draws[0].dtype == torch.float32
    assert 0 <= draws[0].min() <= draws[0].max() <= 1
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("shape", AREAS)
def test_areas(shape: str) -> None:
    """A shape covers what its outline encloses; anti-aliasing at corners accounts for the rest."""
    scenes = plain_scenes(torch.tensor([SHAPES.index(shape)]), COLOURS.index("red"), 1)
    empty = render(replace(scenes, radius_px=torch.tensor([1e-3]), centre_px=torch.full((1, 2), -90.0)))
    red = torch.tensor(OBJECT_RGB[0])[:, None, None]
    coverage = ((render(scenes) - empty)[0] / (red - empty[0]))[0].sum()
    assert float(coverage) == pytest.approx(AREAS[shape] * RADIUS_PX**2, rel=0.02)


@pytest.mark.parametrize("background", range(len(BACKGROUND_RGB)))
def test_colours(background: int) -> None:
    """The middle of a plain disc is its colour, and the corners are the ends of the background's gradient."""
    circles = plain_scenes(torch.zeros(len(COLOURS), dtype=torch.int64), 0, background)
    pictures = render(replace(circles, colour=torch.arange(len(COLOURS))))
    torch.testing.assert_close(pictures[:, :, 32, 32], torch.tensor(OBJECT_RGB))
    top, bottom = torch.tensor(BACKGROUND_RGB[background])
    step = (bottom - top).abs().max() / SIZE_PX
    assert (pictures[:, :, 0, 0] - top).abs().max() <= step
    assert (pictures[:, :, -1, -1] - bottom).abs().max() <= step
