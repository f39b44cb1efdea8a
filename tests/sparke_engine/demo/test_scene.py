"""The world: its skewed prior, and scenes that keep to what is stated."""

import pytest
import torch

from sparke_engine.demo.scene import ATTRIBUTES, OPEN, SHAPES, prior, sample_scenes


@pytest.mark.parametrize("name", ["colour", "background", "texture"])
def test_the_prior_is_a_skewed_distribution_per_shape(name: str) -> None:
    """Rows sum to one; a favourite takes two fifths or more; each value is somebody's favourite."""
    table = prior()[name].double()
    assert table.shape == (len(SHAPES), len(ATTRIBUTES[name]))
    torch.testing.assert_close(table.sum(dim=1), torch.ones(8, dtype=torch.float64))
    assert table.min() > 0
    assert table.max(dim=1).values.min() > 0.4
    assert set(table.argmax(dim=1).tolist()) == set(range(table.shape[1]))


def test_no_value_is_frequent_over_all_shapes() -> None:
    """Over shapes colours and backgrounds are uniform, and textures as nearly as eight shapes allow three values."""
    for name, tolerance in (("colour", 1e-6), ("background", 1e-6), ("texture", 0.04)):
        means = prior()[name].double().mean(dim=0)
        assert (means - 1 / len(means)).abs().max() <= tolerance, name


def test_scenes_keep_what_is_stated_and_draw_the_rest() -> None:
    """Stated attributes are as stated; open ones follow their shape's prior, within five standard errors."""
    size, generator = 8000, torch.Generator().manual_seed(3)
    stated = torch.full((size, 4), OPEN)
    stated[:, 0] = torch.arange(size) % 8
    stated[: size // 2, 2] = 6
    attributes = sample_scenes(stated, generator).attributes()
    assert torch.equal(attributes[stated != OPEN], stated[stated != OPEN])
    for shape in range(8):
        drawn = attributes[attributes[:, 0] == shape, 1]
        expected = prior()["colour"][shape]
        share = torch.bincount(drawn, minlength=8) / len(drawn)
        assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / len(drawn)).sqrt()).all()


def test_an_open_shape_is_uniform_and_everything_stays_in_the_picture() -> None:
    """Eight shapes at a share of one eighth; no centre nearer to an edge than the object's radius."""
    scenes = sample_scenes(torch.full((8000, 4), OPEN), torch.Generator().manual_seed(4))
    share = torch.bincount(scenes.shape, minlength=8) / 8000
    assert (share - 1 / 8).abs().max() <= 5 * (1 / 8 * 7 / 8 / 8000) ** 0.5
    margin = torch.minimum(scenes.centre_px, 64 - scenes.centre_px).amin(dim=1) - scenes.radius_px
    assert margin.min() >= 0.999
