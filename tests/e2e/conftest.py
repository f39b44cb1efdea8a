"""`sparke serve` as a person runs it: a process of its own, with the weightless toy model."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from patience import PATIENCE_S

CATALOGUE = """
[[models]]
model_id = "toy"
source = "builtin:toy"
latent_space = "toy"
default_steps = 3
max_steps = 10000000
[models.size]
default_width_px = 64
default_height_px = 64
min_px = 32
max_px = 128
multiple_px = 8
"""
READY = "SPARKE is ready: "
START_TIMEOUT_S = 200


def processes_below(pid: int) -> list[int]:
    """The living processes that a process has started, and those that they have."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z":
                children.setdefault(int(parent), []).append(int(folder.name))
    found, left = [], [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def is_running(pid: int) -> bool:
    """True while the process lives."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command_of(pid: int) -> str:
    """The command line of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@dataclass
class Service:
    """A running `sparke serve`."""

    process: subprocess.Popen[str]
    url: str
    said: list[str]

    def generate(self, *, key: str | None = None, **members: Any) -> httpx.Response:
        """Asks for images."""
        body = {"prompt": "a star", **members}
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.post(f"{self.url}/v1/images/generations", json=body, headers=headers, timeout=250)

    @property
    def pids(self) -> list[int]:
        """The process and all that it has started."""
        return [self.process.pid, *processes_below(self.process.pid)]

    @property
    def worker_pids(self) -> list[int]:
        """The worker children."""
        return [pid for pid in processes_below(self.process.pid) if " worker " in command_of(pid)]

    def kill_all(self) -> None:
        """SIGKILL to every process of the service, the parent first."""
        for pid in self.pids:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)


Start = Callable[..., Service]
Beside = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


def make_env(folder: Path, **variables: str) -> dict[str, str]:
    """The environment of a command that knows the toy model alone."""
    catalogue = folder / "models.toml"
    catalogue.write_text(CATALOGUE, encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPARKE_")}
    return {**env, "SPARKE_MODELS_FILE": str(catalogue), "SPARKE_DEVICE": "cpu", **variables}


@pytest.fixture(scope="session")
def make_env_of() -> Callable[..., dict[str, str]]:
    """What makes such an environment."""
    return make_env


@contextmanager
def starter(folder: Path) -> Iterator[Start]:
    """A function that starts `sparke serve` on a free port and waits until it says that it is ready."""
    running: list[Service] = []

    def start_service(data_dir: Path, **variables: str) -> Service:
        command = [sys.executable, "-P", "-m", "app.cli", "serve", "--port", "0", "--data-dir", str(data_dir)]
        process = subprocess.Popen(
            command, env=make_env(folder, **variables), stdout=subprocess.PIPE, text=True
        )
        lines: queue.Queue[str] = queue.Queue()
        said: list[str] = []

        def read() -> None:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    said.append(line)
                    lines.put(line)

        threading.Thread(target=read, daemon=True).start()
        service = Service(process, "", said)
        running.append(service)
        line = lines.get(timeout=START_TIMEOUT_S)
        assert line.startswith(READY), line
        service.url = line.removeprefix(READY).strip()
        return service

    try:
        yield start_service
    finally:
        for service in running:
            if service.process.poll() is None:
                service.kill_all()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts services that end with the test."""
    with starter(tmp_path) as start_service:
        yield start_service


@pytest.fixture(scope="module")
def start_for_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts services that end with the module's last test."""
    with starter(tmp_path_factory.mktemp("module")) as start_service:
        yield start_service


@pytest.fixture
def beside(tmp_path: Path) -> Beside:
    """Starts another process on the Redis of the service whose data lie in `tmp_path/data`: a command and its options."""

    @contextmanager
    def run(command: str, *more: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
        line = [sys.executable, "-P", "-m", "app.cli", command, "--data-dir", str(tmp_path / "data"), *more]
        env = make_env(tmp_path, **variables)
        with subprocess.Popen(line, env=env, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.terminate()
                process.wait(60)

    return run
