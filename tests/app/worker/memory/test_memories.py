"""Which settings give a worker snapshots of its memories."""

import stat

import pytest
from prometheus_client import CollectorRegistry

from app.errors import ConfigurationError
from app.settings import load_settings
from app.telemetry.metrics import Metrics
from app.worker.memory.memories import Memories


def _memories(redis, **members):
    return Memories(redis, load_settings(**members), Metrics(CollectorRegistry()))


@pytest.mark.anyio
async def test_a_folder_is_made_for_this_user_alone(redis, tmp_path):
    """And nothing is written to it while no memory is large."""
    folder = tmp_path / "some" / "snapshots"
    memories = _memories(redis, memory_snapshots_dir=folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    await memories.close()
    assert list(folder.iterdir()) == []


@pytest.mark.anyio
async def test_without_a_folder_or_room_there_are_none(redis, tmp_path):
    """Neither is anything made then, nor does closing do anything."""
    for members in ({}, {"memory_snapshots_dir": tmp_path / "new", "memory_snapshots_bytes": 0}):
        await _memories(redis, **members).close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.anyio
async def test_a_folder_that_cannot_be_is_a_wrong_setting(redis, tmp_path):
    """The message names the setting and the folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"SPARKE_MEMORY_SNAPSHOTS_DIR: .*file"):
        _memories(redis, memory_snapshots_dir=tmp_path / "file")
