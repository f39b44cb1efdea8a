"""`sparke memories search`, `preview` and `stats` as a person runs them, against a real service."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("worker")


def _sparke(*arguments):
    command = [sys.executable, "-P", "-m", "app.cli", "memories", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_the_commands_ask_a_service(http, api_url):
    """By the memory's name: what the answers have, a line for each entry or number; what is refused is said."""
    for prompt, seed in (("a circle", 1), ("a star", 2), ("a star", 3)):
        body = {"prompt": prompt, "seed": seed, "diversity": {"memory": {"name": "shell"}}}
        assert http.post("/v1/images/generations", json=body).status_code == 200
    where = ("--url", api_url)
    found = _sparke("search", "shell", "a star", "--limit", 2, "--min-similarity", 0.9, *where)
    rows = [line.split("\t") for line in found.stdout.splitlines()]
    assert [row[1] for row in rows] == ["2", "3"], found.stderr
    assert [row[-1] for row in rows] == ["a star", "a star"]
    assert float(rows[0][0]) == pytest.approx(1, abs=1e-3)
    shown = _sparke("preview", "shell", "a star", "--strength", 1, "--version", 2, *where)
    rows = [line.split("\t") for line in shown.stdout.splitlines()]
    assert [row[3] for row in rows] == ["2"], shown.stderr
    assert "1 neighbours of 1, expected push 0." in shown.stderr
    stats = _sparke("stats", "toy.shell", "--sample", 100, *where)
    lines = dict(line.split("\t", 1) for line in stats.stdout.splitlines())
    assert (lines["num_entries"], lines["num_sampled"], lines["model"]) == ("3", "3", "toy"), stats.stderr
    assert 1 <= float(lines["cond_vendi"]) <= 3
    assert stats.stdout.count("growth") == 3
    refused = _sparke("search", "shell", "a star", "--model", "nothing", *where)
    assert refused.returncode == 1
    assert "no model 'nothing'" in refused.stderr
