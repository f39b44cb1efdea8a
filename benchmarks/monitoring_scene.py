"""The processes of `monitoring.py`: a Redis, two replicas of the API, three workers, a Prometheus; on loopback, ended by pid."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from monitoring_prometheus import Prometheus
from monitoring_prometheus import start as start_prometheus
from monitoring_worker import Mood
from processes import MORTAL_API, free_ports

from app.domain.ids import TenantId
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis
from app.tenants.keys import KeyStore

TOY, DEMO = "toy", "sparke-demo"
TENANTS = ("acme", "bolt")
MAX_WAITING_JOBS = 120
LEASE_S = 3.0
_WORKER = Path(__file__).with_name("monitoring_worker.py")
_CATALOGUE = f"""
[[models]]
model_id = "{TOY}"
source = "builtin:toy"
latent_space = "toy"
default_steps = 4
max_steps = 100
default_strength = 0.5
[models.size]
default_width_px = 64
default_height_px = 64
min_px = 64
max_px = 64
multiple_px = 8

[[models]]
model_id = "{DEMO}"
source = "builtin:demo"
latent_space = "demo"
dtype = "float32"
default_steps = 4
max_steps = 100
default_guidance_scale = 9
default_strength = 0.5
[models.size]
default_width_px = 64
default_height_px = 64
min_px = 64
max_px = 64
multiple_px = 8
"""
_SETTINGS = {
    "SPARKE_DEVICE": "cpu",
    "SPARKE_HEARTBEAT_INTERVAL_S": "0.5",
    "SPARKE_HEARTBEAT_TTL_S": f"{LEASE_S:g}",
    "SPARKE_SWEEP_INTERVAL_S": "1",
    "SPARKE_MAX_BATCH_IMAGES": "4",  # a slow engine still ends a batch within the scaled windows
    "SPARKE_REDIS_TIMEOUT_S": "2",
    "SPARKE_REQUEST_TIMEOUT_S": "60",
    "SPARKE_NO_WORKER_GRACE_S": "2",
    "SPARKE_MAX_WAITING_JOBS_PER_TENANT": f"{MAX_WAITING_JOBS}",
    "SPARKE_WEBHOOKS_ALLOW_PRIVATE": "true",
    "SPARKE_LOG_FORMAT": "json",
    "SPARKE_LOG_LEVEL": "warning",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
_START_S = 180.0


@dataclass
class Worker:
    """One worker: what it serves, where its metrics are, and whether it is started anew when it has ended."""

    model: str
    port: int
    process: subprocess.Popen[bytes]
    is_kept: bool = True


@dataclass
class Scene:
    """What runs now. Start processes from the main thread: they die with the one they came of."""

    folder: Path
    server: EmbeddedRedis
    keys: dict[str, str]
    ports: list[int]
    workers: list[Worker] = field(default_factory=list)
    replicas: list[subprocess.Popen[bytes]] = field(default_factory=list)
    are_replicas_kept: bool = True
    prometheus: Prometheus = field(default_factory=lambda: Prometheus("", ()))
    _watching: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    def start(cls, folder: Path, factor: float) -> "Scene":
        """Everything, on free ports; it is ready when `wait_until_ready` has returned."""
        (folder / "models.toml").write_text(_CATALOGUE, encoding="utf-8")
        Mood().write(folder / "mood.json")
        server = EmbeddedRedis.start(folder)
        *ports, first, second, third, prometheus = free_ports(6)
        scene = cls(folder, server, asyncio.run(_make_keys(server.url)), ports)
        scene.replicas = [scene._start_replica(port) for port in ports]
        for model, port in ((TOY, first), (TOY, second), (DEMO, third)):
            scene.workers.append(Worker(model, port, scene._start_worker(model, port)))
        targets = {
            "sparke-api": [f"127.0.0.1:{port}" for port in ports],
            "sparke-worker": [f"127.0.0.1:{worker.port}" for worker in scene.workers],
        }
        process, scene.prometheus = start_prometheus(folder / "prometheus", targets, factor, prometheus)
        scene._watching.append(process)
        return scene

    @property
    def urls(self) -> list[str]:
        """Where each replica is; it comes back there."""
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    @property
    def images(self) -> Path:
        """Where images lie."""
        return self.folder / "images"

    @property
    def mood(self) -> Path:
        """Where engines read what they are to be like."""
        return self.folder / "mood.json"

    @property
    def toys(self) -> list[Worker]:
        """The workers of the model `toy`."""
        return [worker for worker in self.workers if worker.model == TOY]

    async def wait_until_ready(self) -> None:
        """Returns once every replica sees every worker ready. Raises TimeoutError."""
        until_s = time.monotonic() + _START_S
        async with httpx.AsyncClient() as http:
            while not all([await _sees(http, url, len(self.workers)) for url in self.urls]):
                if time.monotonic() > until_s:
                    raise TimeoutError(f"not ready after {_START_S:g} s; see {self.folder / 'log'}")
                self.replace_dead()
                await asyncio.sleep(0.2)

    def replace_dead(self) -> None:
        """A new process for each worker and replica that has ended and is kept."""
        for worker in self.workers:
            if worker.is_kept and worker.process.poll() is not None:
                worker.process = self._start_worker(worker.model, worker.port)
        for place, replica in enumerate(self.replicas):
            if self.are_replicas_kept and replica.poll() is not None:
                self.replicas[place] = self._start_replica(self.ports[place])

    def pause_redis(self) -> None:
        """Redis does not answer any more, and breaks no connection."""
        os.kill(self.server.pid or 0, signal.SIGSTOP)

    def resume_redis(self) -> None:
        """It does again."""
        os.kill(self.server.pid or 0, signal.SIGCONT)

    def kill_redis(self) -> None:
        """Redis is gone."""
        os.kill(self.server.pid or 0, signal.SIGKILL)
        self.server.stop()

    def restart_redis(self) -> None:
        """It comes back with what it had written."""
        self.server = EmbeddedRedis.start(self.folder)

    def stop(self) -> None:
        """Ends everything, also what is frozen."""
        processes = [*self.replicas, *(worker.process for worker in self.workers), *self._watching]
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
        if self.server.is_running:
            self.resume_redis()
        self.server.stop()

    def _start_worker(self, model: str, port: int) -> subprocess.Popen[bytes]:
        arguments = [str(_WORKER), str(os.getpid()), str(self.mood)]
        return self._start(arguments, SPARKE_MODELS=model, SPARKE_WORKER_METRICS_PORT=str(port))

    def _start_replica(self, port: int) -> subprocess.Popen[bytes]:
        return self._start(["-c", MORTAL_API, str(os.getpid()), "api", "--port", str(port)])

    def _start(self, arguments: list[str], **more: str) -> subprocess.Popen[bytes]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("SPARKE_")}
        env |= _SETTINGS | {
            "SPARKE_REDIS_URL": self.server.url,
            "SPARKE_DATA_DIR": str(self.folder),
            "SPARKE_IMAGE_URL": self.images.as_uri(),
            "SPARKE_MODELS_FILE": str(self.folder / "models.toml"),
        }
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own commands
                [sys.executable, "-P", *arguments], env=env | more, stdout=log, stderr=log
            )


async def _make_keys(redis_url: str) -> dict[str, str]:
    redis = connect(redis_url)
    keys = {tenant: await KeyStore(redis).create(TenantId(tenant)) for tenant in TENANTS}
    await redis.aclose()
    return keys


async def _sees(http: httpx.AsyncClient, url: str, num_workers: int) -> bool:
    try:
        answer = await http.get(f"{url}/readyz")
    except httpx.TransportError:
        return False
    return answer.is_success and answer.json()["workers"]["ready"] >= num_workers
