"""The chaos run over HTTP finds nothing wrong, and its judge finds what was spoilt on purpose."""

import asyncio

import pytest
from chaos import Plan, play
from chaos_judge import PLANTS, judge


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_lost_or_done_twice(tmp_path):
    """Workers, replicas and Redis are killed, a worker is frozen; then one thing after another is spoilt, and each is seen."""
    played = asyncio.run(play(Plan(seed=7, num_jobs=200, num_kills=6, num_freezes=1), tmp_path))
    try:
        found = asyncio.run(judge(played))
        assert found.faults == []
        assert min(played.scene.killed[what] for what in ("worker", "API", "Redis")) >= 1
        assert played.scene.num_frozen == 1
        assert found.figures["succeeded"] > 150
        assert found.figures["cancels acknowledged"] > 0
        assert found.figures["begun more than once"] > 0
        assert found.figures["poison"] > 0
        assert found.figures["times that followers came back"] > 0
        known = set(found.faults)
        for fault, beginning in PLANTS.items():
            spoilt = set(asyncio.run(judge(played, fault)).faults)
            assert any(one.startswith(beginning) for one in spoilt - known), (fault, spoilt - known)
            known |= spoilt
    finally:
        played.scene.stop()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_lost_where_masters_are_killed(tmp_path):
    """The same on a master that three sentinels watch, one replica waited for: whatever was acknowledged outlives the master."""
    plan = Plan(seed=7, num_jobs=200, num_kills=6, num_freezes=1, has_sentinels=True)
    played = asyncio.run(play(plan, tmp_path))
    try:
        found = asyncio.run(judge(played))
        assert found.faults == []
        assert min(played.scene.killed[what] for what in ("worker", "API", "Redis")) >= 1
        assert found.figures["succeeded"] > 150
        assert found.figures["times that followers came back"] > 0
    finally:
        played.scene.stop()
