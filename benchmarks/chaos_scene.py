"""The processes of `chaos.py`: one Redis, workers and replicas of the API, each of which can be killed and comes back."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos_check import MODEL
from chaos_redis import ChaosRedis, OneServer
from processes import MORTAL_API, free_ports

WORKER, REPLICA, REDIS = "worker", "API", "Redis"
_WORKER = Path(__file__).parent / "chaos_worker.py"
_CATALOGUE = f"""
[[models]]
model_id = "{MODEL}"
source = "builtin:toy"
latent_space = "toy"
default_steps = 4
max_steps = 100
[models.size]
default_width_px = 64
default_height_px = 64
min_px = 64
max_px = 64
multiple_px = 8
"""
_LEASE_S = 3.0
_SETTINGS = {
    "SPARKE_DEVICE": "cpu",
    "SPARKE_HEARTBEAT_INTERVAL_S": "0.5",
    "SPARKE_HEARTBEAT_TTL_S": f"{_LEASE_S:g}",
    "SPARKE_SWEEP_INTERVAL_S": "1",
    "SPARKE_REDIS_TIMEOUT_S": "2",
    "SPARKE_NO_WORKER_GRACE_S": "300",
    "SPARKE_LOG_FORMAT": "json",
    "SPARKE_LOG_LEVEL": "warning",
    "OMP_NUM_THREADS": "1",
}
_START_S = 120.0


@dataclass
class Scene:
    """What runs now, and what was done to it. Start processes from the main thread: they die with the one they came of."""

    folder: Path
    redis: ChaosRedis
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    replicas: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ports: Sequence[int] = ()
    started: Counter[str] = field(default_factory=Counter)
    killed: Counter[str] = field(default_factory=Counter)
    num_frozen: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)  # beyond the usual ones

    @classmethod
    def start(
        cls,
        folder: Path,
        num_workers: int,
        num_replicas: int,
        *,
        redis: ChaosRedis | None = None,
        **settings: str,
    ) -> "Scene":
        """Everything, on free ports; it is ready when `wait_until_ready` has returned."""
        (folder / "models.toml").write_text(_CATALOGUE, encoding="utf-8")
        scene = cls(folder, redis or OneServer(folder), ports=free_ports(num_replicas), settings=settings)
        scene.workers = [scene._start_worker() for _ in range(num_workers)]
        scene.replicas = [scene._start_replica(port) for port in scene.ports]
        return scene

    @property
    def urls(self) -> list[str]:
        """Where each replica is; it comes back there."""
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    @property
    def images(self) -> Path:
        """Where images lie."""
        return self.folder / "images"

    async def wait_until_ready(self) -> None:
        """Returns once every replica listens. Raises TimeoutError."""
        until_s = time.monotonic() + _START_S
        while not all(_listens(port) for port in self.ports):
            if time.monotonic() > until_s:
                raise TimeoutError(f"the replicas are not up after {_START_S:g} s; see {self.folder / 'log'}")
            self.replace_dead()
            await asyncio.sleep(0.1)

    async def kill(self, what: str, dice: random.Random) -> None:
        """SIGKILL to one of a kind. Redis is back when this returns; who replaces the others does so in its own time."""
        self.killed[what] += 1
        if what != REDIS:
            dice.choice(self.workers if what == WORKER else self.replicas).kill()
            return
        await self.redis.kill(dice)

    async def freeze(self, dice: random.Random) -> None:
        """Stops a worker for longer than its leases, and lets it go on with what others have by then."""
        worker = dice.choice(self.workers)
        worker.send_signal(signal.SIGSTOP)
        await asyncio.sleep(_LEASE_S + dice.uniform(0.5, 1.5))
        worker.send_signal(signal.SIGCONT)
        self.num_frozen += 1

    def replace_dead(self) -> None:
        """A new process for each worker and replica that has ended, whatever it died of."""
        for place, worker in enumerate(self.workers):
            if worker.poll() is not None:
                self.workers[place] = self._start_worker()
        for place, replica in enumerate(self.replicas):
            if replica.poll() is not None:
                self.replicas[place] = self._start_replica(self.ports[place])

    async def restart(self, what: str, place: int) -> None:
        """SIGTERM, the end of the process in its own time, then a new one in its place."""
        processes = self.workers if what == WORKER else self.replicas
        processes[place].terminate()
        await asyncio.to_thread(processes[place].wait)
        processes[place] = self._start_worker() if what == WORKER else self._start_replica(self.ports[place])

    def stop_workers(self) -> None:
        """Ends the workers, so that nothing moves any more."""
        _end(self.workers)

    def stop(self) -> None:
        """Ends everything."""
        _end(self.workers + self.replicas)
        self.redis.stop()

    def _start_worker(self) -> subprocess.Popen[bytes]:
        self.started[WORKER] += 1
        return self._start([str(_WORKER), str(os.getpid())])

    def _start_replica(self, port: int) -> subprocess.Popen[bytes]:
        self.started[REPLICA] += 1
        return self._start(["-c", MORTAL_API, str(os.getpid()), "api", "--port", str(port)])

    def _start(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("SPARKE_")}
        env |= _SETTINGS | {
            **self.settings,
            "SPARKE_REDIS_URL": self.redis.url,
            "SPARKE_REDIS_REPLICAS": str(self.redis.num_replicas),
            "SPARKE_DATA_DIR": str(self.folder),
            "SPARKE_IMAGE_URL": self.images.as_uri(),
            "SPARKE_MODELS_FILE": str(self.folder / "models.toml"),
        }
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own commands
                [sys.executable, *arguments], env=env, stdout=log, stderr=log
            )


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
