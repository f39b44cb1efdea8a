"""The parts of `sparke serve`: a Redis and a worker that are kept running, and children that do not outlive it."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from patience import PATIENCE_S, eventually, wait_until

from app.errors import ConfigurationError
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis
from app.serve import EXIT_CONFIGURATION, RedisKeeper, keep_worker, known_redis_url
from app.settings import load_settings

pytestmark = pytest.mark.anyio


def _holds(path: Path, text: str) -> bool:
    return path.exists() and text in path.read_text()


async def _until(path: Path, text: str) -> None:
    """Waits until the file holds the text."""
    await eventually(lambda: _holds(path, text), f"no {text!r} in {path}")


async def test_a_worker_that_dies_is_started_again(tmp_path: Path):
    """The third start lives; at the end it gets SIGTERM and its time to finish."""
    log = tmp_path / "log"
    script = (
        f"echo start >> {log}; [ $(grep -c start {log}) -ge 3 ] || exit 1;"
        f" trap 'sleep 0.3; echo drained >> {log}; exit 0' TERM; echo up >> {log}; while :; do sleep 0.05; done"
    )
    task = asyncio.create_task(keep_worker(["sh", "-c", script], PATIENCE_S))
    await _until(log, "up")
    task.cancel()
    await asyncio.wait((task,))
    assert log.read_text().split() == ["start", "start", "start", "up", "drained"]


async def test_a_worker_with_wrong_settings_is_not_started_again(tmp_path: Path):
    """It would say the same again."""
    log = tmp_path / "log"
    with pytest.raises(ConfigurationError):
        await keep_worker(["sh", "-c", f"echo start >> {log}; exit {EXIT_CONFIGURATION}"], PATIENCE_S)
    assert log.read_text().split() == ["start"]


async def test_a_redis_that_dies_is_started_again_with_its_data(tmp_path: Path):
    """A key that was acknowledged is there after kill -9."""
    with RedisKeeper(load_settings(data_dir=tmp_path)) as keeper:
        keeping = asyncio.create_task(keeper.keep())
        redis = connect(keeper.url)
        await redis.set("kept", "yes")
        pid = (await redis.info("server"))["process_id"]
        os.kill(pid, signal.SIGKILL)

        async def ask():
            with suppress(Exception):  # whatever the client says while it is away
                return await redis.get("kept")

        assert await eventually(ask) == b"yes"
        assert (await redis.info("server"))["process_id"] != pid
        await redis.aclose()
        keeping.cancel()
        await asyncio.wait((keeping,))


def test_a_child_dies_with_its_parent():
    """Killed by SIGKILL, a parent takes the child with it; a child whose parent is gone ends at once."""
    child = "import os, time; from app.serve import die_with_parent; die_with_parent({pid}); print(1, flush=True); time.sleep(60)"
    parent = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}.format(pid=os.getpid())], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        child_pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    wait_until(lambda: not _is_running(child_pid), "the child outlived its parent")
    orphan = subprocess.run([sys.executable, "-c", child.format(pid=1)], capture_output=True, check=False)
    assert (orphan.returncode, orphan.stdout) == (1, b"")


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_which_redis(tmp_path: Path):
    """The shared one of the settings, else the one that serves the data directory, else an error that says what to do."""
    settings = load_settings(data_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="SPARKE_REDIS_URL"):
        known_redis_url(settings)
    with EmbeddedRedis.start(tmp_path) as server:
        assert known_redis_url(settings) == server.url
    shared = settings.model_copy(update={"redis_url": "redis://elsewhere"})
    assert known_redis_url(shared) == "redis://elsewhere"
