"""The parts of `sparke serve`: a Redis and a worker that are kept running, and children that do not outlive it."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from patience import PATIENCE_S, eventually, wait_until
from structlog.testing import capture_logs

from app.errors import ConfigurationError
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis
from app.serve import (
    EXIT_CONFIGURATION,
    RedisKeeper,
    keep_worker,
    keep_workers,
    known_redis_url,
    worker_commands,
)
from app.settings import load_settings

pytestmark = pytest.mark.anyio


def _holds(path: Path, text: str) -> bool:
    return path.exists() and text in path.read_text()


async def _until(path: Path, text: str) -> None:
    """Waits until the file holds the text."""
    await eventually(lambda: _holds(path, text), f"no {text!r} in {path}")


@pytest.fixture
def spawned() -> Iterator[Callable[[], int]]:
    """How many workers were started so far: one that is ended while it is being started is killed, and its log says less."""
    with capture_logs() as told:
        yield lambda: sum(line["event"] == "worker_spawned" for line in told)


async def test_a_worker_that_dies_is_started_again(tmp_path: Path, spawned: Callable[[], int]):
    """The third start lives; at the end it gets SIGTERM and its time to finish."""
    log = tmp_path / "log"
    script = (
        f"echo start >> {log}; [ $(grep -c start {log}) -ge 3 ] || exit 1;"
        f" trap 'sleep 0.3; echo drained >> {log}; exit 0' TERM; echo up >> {log}; while :; do sleep 0.05; done"
    )
    task = asyncio.create_task(keep_worker(["sh", "-c", script], PATIENCE_S))
    await _until(log, "up")
    await eventually(lambda: spawned() == 3)
    task.cancel()
    await asyncio.wait((task,))
    assert log.read_text().split() == ["start", "start", "start", "up", "drained"]


async def test_a_worker_with_wrong_settings_is_not_started_again(tmp_path: Path):
    """It would say the same again."""
    log = tmp_path / "log"
    with pytest.raises(ConfigurationError):
        await keep_worker(["sh", "-c", f"echo start >> {log}; exit {EXIT_CONFIGURATION}"], PATIENCE_S)
    assert log.read_text().split() == ["start"]


async def test_each_device_has_a_worker_and_they_end_side_by_side(tmp_path: Path, spawned: Callable[[], int]):
    """Each waits in its end for the other's to have begun: one after the other they would be killed."""
    log = tmp_path / "log"
    until_both = f"until [ $(grep -c ending {log}) -eq 2 ]; do sleep 0.05; done"
    commands = []
    for name in ("one", "two"):
        at_end = f"echo ending >> {log}; {until_both}; echo {name} >> {log}; exit 0"
        commands.append(
            ["sh", "-c", f"trap '{at_end}' TERM; echo up-{name} >> {log}; while :; do sleep 0.05; done"]
        )
    task = asyncio.create_task(keep_workers(commands, PATIENCE_S))
    await _until(log, "up-one")
    await _until(log, "up-two")
    await eventually(lambda: spawned() == 2)
    task.cancel()
    await asyncio.wait((task,))
    assert sorted(log.read_text().split()[-2:]) == ["one", "two"]


async def test_a_worker_that_cannot_start_ends_the_others(tmp_path: Path, spawned: Callable[[], int]):
    """What is wrong with one device's worker is said, and nothing stays."""
    log, go = tmp_path / "log", tmp_path / "go"
    stays = f"trap 'echo ended >> {log}; exit 0' TERM; echo up >> {log}; while :; do sleep 0.05; done"
    cannot = f"until [ -e {go} ]; do sleep 0.05; done; exit {EXIT_CONFIGURATION}"
    task = asyncio.create_task(keep_workers([["sh", "-c", stays], ["sh", "-c", cannot]], PATIENCE_S))
    await _until(log, "up")
    await eventually(lambda: spawned() == 2)
    go.touch()
    with pytest.raises(ConfigurationError):
        await task
    assert log.read_text().split() == ["up", "ended"]


@pytest.mark.parametrize(("port", "ports"), [(None, [None, None]), (9464, ["9464", "9465"])])
def test_a_workers_command_names_its_device_and_its_port(port, ports):
    """Of a port for metrics the next worker has the next; a password of Redis is in no command."""
    settings = load_settings(
        device="cuda:0, cuda:1", worker_metrics_port=port, redis_url="redis://:secret@127.0.0.1:1/0"
    )
    commands = worker_commands(settings, "redis://:secret@127.0.0.1:1/0")
    assert [_value_of("--device", command) for command in commands] == ["cuda:0", "cuda:1"]
    assert [_value_of("--metrics-port", command) for command in commands] == ports
    assert "secret" not in str(commands)


def _value_of(option: str, command: list[str]) -> str | None:
    return command[command.index(option) + 1] if option in command else None


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
