"""The prompts that the demo benchmarks ask for."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from demo_prompts import SPLITS, open_prompts

from sparke_engine.demo.scene import OPEN


@pytest.mark.parametrize("split", SPLITS)
def test_no_prompt_comes_twice(split: str) -> None:
    """64 texts and 64 scenes, of which every eighth states its shape alone, and each leaves something open."""
    prompts = open_prompts(64, split)
    scenes = [tuple(row) for row in prompts.stated.tolist()]
    assert len(set(prompts.texts)) == len(set(scenes)) == 64
    assert all(OPEN in scene[1:3] for scene in scenes)
    assert sum(scene[1:3] == (OPEN, OPEN) for scene in scenes) == 8
    assert all(sum(scene[0] == shape for scene in scenes) == 8 for shape in range(8))


def test_what_is_tuned_on_is_not_reported() -> None:
    """The splits share no text, no stated pair of attributes and no seed."""
    test, tuning = (open_prompts(64, split) for split in SPLITS)
    pairs = [
        {tuple(row) for row in split.stated.tolist() if max(row[1:]) != OPEN} for split in (test, tuning)
    ]
    assert len(pairs[0]) == len(pairs[1]) == 56
    assert not pairs[0] & pairs[1]
    assert not set(test.texts) & set(tuning.texts)
    assert abs(test.first_seed - tuning.first_seed) > 1000 * 64


def test_a_prefix_is_a_mixture() -> None:
    """The first eight have one of no more than a shape, four colours and three backgrounds; more than 64 there are not."""
    stated = open_prompts(8).stated
    assert [(stated[:, part] != OPEN).sum().item() for part in (0, 1, 2)] == [8, 4, 3]
    with pytest.raises(SystemExit, match="1 to 64 prompts"):
        open_prompts(65)
