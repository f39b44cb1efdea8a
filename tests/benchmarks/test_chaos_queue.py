"""The chaos run on the queue finds nothing wrong, and its checker finds what was spoilt on purpose."""

import asyncio

import pytest
from chaos_queue import Plan, judge, run


@pytest.mark.parametrize(
    ("seconds", "seed"),
    [(12.0, 7), pytest.param(300.0, 8, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_nothing_is_lost_or_done_twice(tmp_path, seconds, seed):
    """Workers and Redis are killed at random; then an entry is taken away, and another doubled: both are seen."""
    scene, told = asyncio.run(run(Plan(seed, seconds), tmp_path))
    try:
        found = asyncio.run(judge(scene, told))
        assert found.faults == []
        assert scene.kills["worker"] >= 3
        assert scene.kills["Redis"] >= 1
        assert found.figures["succeeded"] > 50
        assert found.figures["begun more than once"] > 0
        for fault, word in (("loss", "lost"), ("double", "double")):
            spoilt = asyncio.run(judge(scene, told, fault)).faults
            assert any(one.startswith(word) for one in spoilt), spoilt
    finally:
        scene.stop()
