"""A master, replicas and sentinels as real processes on loopback, each of which can be killed, frozen and started again.

Start it from the main thread: all of them die with the one that they came of.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import redis
from processes import free_ports
from redis.exceptions import RedisError

from app.redis.server_binary import find_server

MASTER = "sparke"
_START_S = 60.0
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass
class SentinelScene:
    """What runs now. `url` is how the service is told of it; a context manager that ends everything."""

    folder: Path
    down_after_ms: int = 500
    binary: Path = field(default_factory=lambda: find_server().path)
    password: str = ""  # of the servers
    sentinel_password: str = ""
    tls: Path | None = None  # a folder of ca.pem, server.pem and server.key; None: in the clear
    ports: Sequence[int] = ()  # of the servers; the first was the master at the start
    sentinel_ports: Sequence[int] = ()
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    def start(cls, folder: Path, *, num_replicas: int = 2, num_sentinels: int = 3, **more: Any) -> Self:
        """All of them, ready: the replicas follow, and every sentinel knows them and its fellows."""
        ports = free_ports(1 + num_replicas + num_sentinels)
        scene = cls(folder, ports=ports[: 1 + num_replicas], sentinel_ports=ports[1 + num_replicas :], **more)
        try:
            for port in scene.ports:
                scene.start_server(port)
            for port in scene.sentinel_ports:
                scene.start_sentinel(port)
            scene.wait_until_ready()
        except BaseException:
            scene.stop()
            raise
        return scene

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """What SPARKE_REDIS_URL is."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        user = f":{self.password}@" if self.password else ""
        members = [f"sentinel_password={self.sentinel_password}"] if self.sentinel_password else []
        members += [f"ssl_ca_certs={self.tls / 'ca.pem'}"] if self.tls else []
        scheme = "rediss+sentinel" if self.tls else "redis+sentinel"
        return f"{scheme}://{user}{hosts}/{MASTER}?{'&'.join(members)}"

    @property
    def master_port(self) -> int:
        """The master as of the sentinels' newest configuration."""
        told = []
        for port in self.sentinel_ports:
            if self.is_running(port):
                with self.sentinel(port) as client:
                    state: Any = client.sentinel_masters()[MASTER]
                    address: Any = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", MASTER)
                    told.append((state["config-epoch"], int(address[1])))
        return max(told)[1]

    def server(self, port: int) -> "redis.Redis":
        """A client of one server."""
        return redis.Redis(port=port, password=self.password or None, socket_timeout=5, **self._client_tls)

    def sentinel(self, port: int) -> "redis.Redis":
        """A client of one sentinel."""
        password = self.sentinel_password or None
        return redis.Redis(
            port=port, password=password, decode_responses=True, socket_timeout=5, **self._client_tls
        )

    @property
    def _client_tls(self) -> dict[str, Any]:
        return {"ssl": True, "ssl_ca_certs": str(self.tls / "ca.pem")} if self.tls else {}

    def _listening(self, port: int) -> list[str]:
        """Lines of a configuration."""
        if self.tls is None:
            return [f"port {port}", "bind 127.0.0.1"]
        files = {"tls-ca-cert-file": "ca.pem", "tls-cert-file": "server.pem", "tls-key-file": "server.key"}
        lines = [f"{name} {self.tls / file}" for name, file in files.items()]
        return [
            *lines,
            "port 0",
            f"tls-port {port}",
            "bind 127.0.0.1",
            "tls-replication yes",
            "tls-auth-clients no",
        ]

    def is_running(self, port: int) -> bool:
        """Whether the process behind a port lives."""
        return port in self.processes and self.processes[port].poll() is None

    def send(self, port: int, number: signal.Signals) -> None:
        """A signal to the process behind a port; SIGKILL is waited for."""
        process = self.processes[port]
        process.send_signal(number)
        if number == signal.SIGKILL:
            process.wait()

    def fail_over(self) -> None:
        """Asks a sentinel for a fail-over while the master lives."""
        with self.sentinel(self.sentinel_ports[0]) as client:
            client.execute_command("SENTINEL FAILOVER", MASTER)

    def start_dead(self) -> None:
        """Starts what has been killed, and thaws what is frozen."""
        for port in (*self.ports, *self.sentinel_ports):
            if self.is_running(port):
                self.send(port, signal.SIGCONT)
            elif port in self.ports:
                self.start_server(port)
            else:
                self.start_sentinel(port)

    def mend(self) -> None:
        """Has every server follow the master, and waits until it does. By themselves sentinels do the first after 8 s."""
        until_s = time.monotonic() + _START_S
        while time.monotonic() < until_s:
            with suppress(RedisError):
                master = self.master_port
                for port in self.ports:
                    if port != master:
                        with self.server(port) as server:
                            server.execute_command("REPLICAOF", "127.0.0.1", str(master))
                break
            time.sleep(0.05)
        self.wait_until_ready()

    def start_server(self, port: int) -> None:
        """Starts a server on its folder: the first time a replica of the first one, later as it knows itself."""
        folder = self.folder / f"redis-{port}"
        folder.mkdir(exist_ok=True)
        config = folder / "redis.conf"
        if not config.exists():  # the sentinels have it rewritten
            lines = [
                *self._listening(port),
                f"dir {folder}",
                "appendonly yes",
                "appendfsync always",
                'save ""',
                "repl-diskless-sync yes",
                "repl-diskless-sync-delay 0",
                "stream-node-max-entries 1",
                "maxmemory-policy noeviction",
            ]
            if self.password:
                lines += [f"requirepass {self.password}", f"masterauth {self.password}"]
            if port != self.ports[0]:
                lines.append(f"replicaof 127.0.0.1 {self.ports[0]}")
            config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.processes[port] = self._start([str(self.binary), str(config)], folder)

    def start_sentinel(self, port: int) -> None:
        """Starts a sentinel; two of them agree that the master is down."""
        folder = self.folder / f"sentinel-{port}"
        folder.mkdir(exist_ok=True)
        config = folder / "sentinel.conf"
        if not config.exists():
            lines = [
                *self._listening(port),
                f"dir {folder}",
                f"sentinel monitor {MASTER} 127.0.0.1 {self.ports[0]} {len(self.sentinel_ports) // 2 + 1}",
                f"sentinel down-after-milliseconds {MASTER} {self.down_after_ms}",
                f"sentinel failover-timeout {MASTER} {max(2000, 6 * self.down_after_ms)}",
                f"sentinel parallel-syncs {MASTER} 1",
            ]
            if self.password:
                lines.append(f"sentinel auth-pass {MASTER} {self.password}")
            if self.sentinel_password:
                lines += [
                    f"requirepass {self.sentinel_password}",
                    f"sentinel sentinel-pass {self.sentinel_password}",
                ]
            config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.processes[port] = self._start([str(self.binary), str(config), "--sentinel"], folder)

    def wait_until_ready(self) -> None:
        """Returns once one master is followed by all other servers, and every sentinel knows all. Raises TimeoutError."""
        until_s = time.monotonic() + _START_S
        while not self._is_ready():
            if time.monotonic() > until_s:
                raise TimeoutError(f"the servers are not up after {_START_S:g} s; see {self.folder}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends every process."""
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _is_ready(self) -> bool:
        num_replicas, num_fellows = len(self.ports) - 1, len(self.sentinel_ports) - 1
        try:
            for port in self.sentinel_ports:
                with self.sentinel(port) as client:
                    state: Any = client.sentinel_masters()[MASTER]
                    if state["num-other-sentinels"] < num_fellows or state["num-slaves"] < num_replicas:
                        return False
                    if state["flags"] != "master":
                        return False
            with self.server(self.master_port) as client:
                info: Any = client.info("replication")
        except (RedisError, KeyError):
            return False
        online = [info.get(f"slave{number}", {}).get("state") == "online" for number in range(num_replicas)]
        return info["role"] == "master" and all(online)

    def _start(self, command: list[str], folder: Path) -> subprocess.Popen[bytes]:
        launched = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(launched, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603 - ours
