"""CLIPScore against its definition, and on what has no direction."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparke_engine.errors import InvalidArgument, ShapeMismatch
from sparke_engine.scores import clip_score, features_of


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**31), st.floats(0.01, 100))
def test_it_is_its_definition(n: int, d: int, seed: int, scale: float) -> None:
    """100 · the mean of the cosines, those below 0 counted as 0; lengths of the rows tell nothing."""
    generator = np.random.default_rng(seed)
    v, t = generator.normal(size=(n, d)), generator.normal(size=(n, d))
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(v, t, strict=True)]
    expected = 100 * np.mean([max(c, 0) for c in cosines])
    found = clip_score(torch.from_numpy(v * scale), torch.from_numpy(t))
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)  # a few float64 roundings of cosines near 0


def test_known_values() -> None:
    """The same direction is 100, or 2.5 as in the source; opposite, at a right angle and zero rows are 0."""
    v = torch.tensor([[3.0, 4.0]])
    assert clip_score(v, 2 * v) == pytest.approx(100)
    assert clip_score(v, v, scale=2.5) == pytest.approx(2.5)
    assert clip_score(v, -v) == 0
    assert clip_score(v, v.flip(1) * torch.tensor([1.0, -1.0])) == pytest.approx(0)
    assert clip_score(v, 0 * v) == 0


def test_half_precision_is_not_lost() -> None:
    """The norm of an fp16 row may lie beyond fp16."""
    v = torch.full((1, 4), 6e4, dtype=torch.float16)
    assert clip_score(v, v) == pytest.approx(100)
    for scale in (1e-24, 1e20):
        row = scale * torch.tensor([[3.0, 4.0]])
        assert clip_score(row, row.flip(1)) == pytest.approx(96)


def test_two_callables_make_the_features() -> None:
    """An encoder of images and one of texts, each over its own kind of items."""
    images = torch.zeros(3, 3, 2, 2)
    images[0, 0], images[1, 1], images[2, 2] = 1, 1, 1
    colours = {"red": [1.0, 0.0, 0.0], "green": [0.0, 1.0, 0.0], "grey": [1.0, 1.0, 1.0]}
    found = clip_score(
        features_of(images, lambda batch: batch.mean((2, 3))),
        features_of(["red", "red", "grey"], lambda texts: torch.tensor([colours[text] for text in texts])),
    )
    assert found == pytest.approx(100 * (1 + 0 + 1 / 3**0.5) / 3)


def test_pairs_are_needed() -> None:
    """As many texts as images, of one length, finite."""
    v = torch.ones(3, 2)
    with pytest.raises((ShapeMismatch, TypeError)):
        clip_score(v, v[:2])
    with pytest.raises((ShapeMismatch, TypeError)):
        clip_score(v, torch.ones(3, 4))
    with pytest.raises(InvalidArgument, match="text features hold NaN"):
        clip_score(v, v / 0)
    with pytest.raises(InvalidArgument, match="image features need at least one row"):
        clip_score(v[:0], v[:0])
