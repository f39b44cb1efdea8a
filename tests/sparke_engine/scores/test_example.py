"""The page about scores tells what is there, and its example runs."""

import re
import subprocess
import sys
from pathlib import Path

import sparke_engine.scores

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "scores.md").read_text(encoding="utf-8")


def test_the_example_runs() -> None:
    """Red stars are fewer modes than all stars, lie among them, and do not cover them."""
    (code,) = re.findall(r"<!-- executed: scores -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
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
