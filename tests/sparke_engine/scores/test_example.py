"""The page about scores tells what is there, and its example runs."""

import re
import subprocess
import sys

import sparke_engine.scores
from tests.documents import example, read

PAGE = read("docs/scores.md")


def test_the_example_runs() -> None:
    """Red stars are fewer modes than all stars, lie among them, and do not cover them."""
    ended = subprocess.run(
        [sys.executable, "-c", example("scores")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    numbers = [float(number) for number in re.findall(r"\d+\.\d+", ended.stdout)]
    modes, of_all, distance, precision, recall, _, coverage = numbers
    assert modes < of_all
    assert distance > 0
    assert precision > 0.8
    assert max(recall, coverage) < 0.4


def test_every_score_is_on_the_page() -> None:
    """Whatever the module offers is described."""
    scores = [name for name in sparke_engine.scores.__all__ if name[0].islower()]
    assert len(scores) > 10
    assert [name for name in scores if f"`{name}(" not in PAGE] == []
