"""A Redis of our own for one machine: a child process on a Unix socket that loses nothing it acknowledged."""

import contextlib
import fcntl
import hashlib
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self
from urllib.parse import quote, unquote, urlsplit

import structlog

from app.errors import ConfigurationError
from app.redis.server_binary import ServerBinary, find_server

_MAX_SOCKET_PATH_BYTES = 100  # the kernel's limit is 108 with the final zero, on some systems 104
_LOCK_PATIENCE_S = 10.0  # a server whose parent was killed needs a moment to close its files
_POLL_S = 0.02
_STOP_TIMEOUT_S = 30.0
_LOG_TAIL_BYTES = 2000

# Becomes the server. It dies with its parent (Linux; the signal is kept across exec): SIGTERM is a clean SHUTDOWN.
# A preexec_fn would do the same, but is not safe in a process that has threads.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedRedis:
    """A running server. `start` makes one; `stop` ends it, twice without harm; also a context manager.

    Append-only file, `appendfsync always`, no eviction, no TCP port. A lock that parent and server both hold keeps a
    second server off the same folder, also while the server of a killed parent is still closing its files.
    """

    def __init__(self, folder: Path, binary: ServerBinary, lock: IO[str]) -> None:
        self._folder = folder
        self._lock = lock
        self._socket = _choose_socket(folder)
        self._log_path = folder / "redis.log"
        self._launched = threading.Event()
        self._launch_error: OSError | None = None
        self._process: subprocess.Popen[bytes] | None = None
        # The kernel signals the child when the *thread* that made it ends, so that thread waits for the child.
        self._thread = threading.Thread(
            target=self._launch_and_wait, args=(binary,), name="embedded-redis", daemon=True
        )

    @classmethod
    def start(cls, data_dir: Path, *, timeout_s: float = 300.0, binary: ServerBinary | None = None) -> Self:
        """Starts a server on `data_dir`/redis and waits until it has loaded its append-only file.

        `binary` None is what `find_server` finds. Raises ConfigurationError: no usable server, folder in use, data of
        a newer server, or it does not come up.
        """
        folder = data_dir.absolute() / "redis"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"the data directory {data_dir} cannot be made: {error.strerror}"
            ) from error
        binary = find_server() if binary is None else binary
        lock = _lock_folder(folder)
        try:
            _refuse_newer_data(folder, binary)
            server = cls(folder, binary, lock)
        except BaseException:
            lock.close()
            raise
        try:
            server._run(timeout_s)
        except BaseException:
            server.stop()
            raise
        return server

    @property
    def url(self) -> str:
        """The URL that `app.redis.connection.connect` takes."""
        return _socket_url(self._socket)

    @property
    def is_running(self) -> bool:
        """False once the server has ended, whoever ended it."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The server's process id."""
        return None if self._process is None else self._process.pid

    def stop(self, *, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """Ends the server by SIGTERM, which is its SHUTDOWN, or after `timeout_s` by SIGKILL. Idempotent."""
        if self._lock.closed:  # stopped before; the folder may be another server's now
            return
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                structlog.get_logger().warning("embedded_redis_killed", timeout_s=timeout_s)
                process.kill()
                process.wait()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        (self._folder / "url").unlink(missing_ok=True)
        self._socket.unlink(missing_ok=True)
        if self._socket.parent != self._folder:
            with contextlib.suppress(OSError):
                self._socket.parent.rmdir()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, timeout_s: float) -> None:
        self._thread.start()
        self._launched.wait()
        if self._launch_error is not None:
            raise ConfigurationError(f"the embedded Redis cannot be started: {self._launch_error}")
        deadline_s = time.monotonic() + timeout_s
        while not _is_ready(self._socket):
            if not self.is_running:
                raise ConfigurationError(
                    f"the embedded Redis ended while it started; its log ends with:\n{self._log_tail()}"
                )
            if time.monotonic() > deadline_s:
                raise ConfigurationError(
                    f"the embedded Redis in {self._folder} was not ready within {timeout_s:.0f} s;"
                    f" its log ends with:\n{self._log_tail()}"
                )
            time.sleep(_POLL_S)
        (self._folder / "url").write_text(self.url, encoding="utf-8")

    def _launch_and_wait(self, binary: ServerBinary) -> None:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            "stream-node-max-entries": "1",  # what is deleted of a stream is gone at once; about 80 bytes an entry
            "daemonize": "no",
        }
        command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(binary.path)]
        for name, value in options.items():
            command += [f"--{name}", value]
        try:
            with self._log_path.open("wb") as log:
                self._process = subprocess.Popen(  # noqa: S603 - the server that find_server chose
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C ends us first, and we end it when nobody needs it
                    pass_fds=(self._lock.fileno(),),
                )
        except OSError as error:
            self._launch_error = error
            return
        finally:
            self._launched.set()
        self._process.wait()

    def _log_tail(self) -> str:
        try:
            return self._log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        except OSError:
            return "(no log)"


def has_data(data_dir: Path) -> bool:
    """Whether a server has ever been started on a data directory."""
    return (data_dir / "redis").is_dir()


def running_url(data_dir: Path) -> str | None:
    """The URL of the server that runs on a data directory now, or None."""
    try:
        url = (data_dir.absolute() / "redis" / "url").read_text(encoding="utf-8")
    except OSError:
        return None
    return url if _is_ready(Path(unquote(urlsplit(url).path))) else None


@contextlib.contextmanager
def running_or_started(data_dir: Path) -> Iterator[str]:
    """The URL of a server on a data directory: the one that runs, else one that lives as long as the context."""
    url = running_url(data_dir)
    if url is not None:
        yield url
        return
    with EmbeddedRedis.start(data_dir) as server:
        yield server.url


def _choose_socket(folder: Path) -> Path:
    """In the folder itself; where its name is too long, in a private one whose short name is always the same."""
    path = folder / "redis.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    private = Path(tempfile.gettempdir()) / f"sparke-{os.getuid()}-{digest}"
    private.mkdir(mode=0o700, exist_ok=True)
    status = private.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ConfigurationError(
            f"{private} must be a folder of this user alone; remove it, or use a shorter data directory"
        )
    return private / "redis.sock"


def _socket_url(path: Path) -> str:
    return f"unix://{quote(str(path))}"


def _lock_folder(folder: Path) -> IO[str]:
    lock = (folder / "lock").open("a+", encoding="utf-8")
    deadline_s = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s or _is_served(folder):
                lock.seek(0)
                owner = lock.read().strip() or "unknown"
                lock.close()
                raise ConfigurationError(
                    f"the data directory {folder.parent} is in use by process {owner};"
                    " stop it, or give another directory with SPARKE_DATA_DIR"
                ) from None
            time.sleep(_POLL_S)
        else:
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            return lock


def _is_served(folder: Path) -> bool:
    """True where the lock's owner is alive and serves, so that waiting for the lock is of no use."""
    try:
        owner = int((folder / "lock").read_text(encoding="utf-8"))
        os.kill(owner, 0)
    except (OSError, ValueError):
        return False
    return running_url(folder.parent) is not None


def _refuse_newer_data(folder: Path, binary: ServerBinary) -> None:
    """Redis 7 keeps its log in a folder that Redis 6 does not see: it would start empty."""
    if (folder / "appendonlydir").exists() and binary.version < (7,):
        raise ConfigurationError(
            f"{folder} was written by Redis 7 or newer, and {binary.path} is {binary.version_text};"
            " install redis-server 7 or newer"
        )


def _is_ready(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(1.0)
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")  # -LOADING while the append-only file is read
    except OSError:
        return False
