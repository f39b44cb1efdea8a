"""Fail-overs under a client that asks for one job after another."""

import asyncio

import pytest
from failover import FROZEN, KILLED, PAUSED, measure


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_was_accepted_outlives_the_master(tmp_path, capsys):
    """Killed, frozen, and replaced with its writes paused: the service accepts again by itself, and no accepted job is gone."""
    kinds = (KILLED, FROZEN, PAUSED)
    assert asyncio.run(measure(tmp_path, kinds, times=2, down_after_ms=2_000)) == 0
    assert [row.split(" | ")[1] for row in capsys.readouterr().out.splitlines()] == list(kinds)
