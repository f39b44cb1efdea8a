"""A service whose every process is replaced under load."""

import asyncio
import shutil

import pytest
from rolling import KINDS, play


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs haproxy on PATH (apt-get install haproxy)")
def test_no_request_fails_and_no_job_is_lost(tmp_path):
    """Two replicas and three workers get SIGTERM in turn, while clients wait, stream and follow, and a batch is worked off."""
    tally = asyncio.run(play(tmp_path, rounds=1, num_clients=12))
    assert tally.failures == []
    assert all(tally.done[kind] >= 10 for kind in KINDS)
