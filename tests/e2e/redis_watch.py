"""A Redis that tells who asks for what, behind TLS of a CA made for the moment: a server, a proxy, a watcher."""

import ast
import asyncio
import contextlib
import hashlib
import re
import socket
import ssl
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import redis
import trustme
from patience import PATIENCE_S
from processes import free_port

from app.redis.server_binary import find_server

ADMIN = "of-the-operator"
LINE = re.compile(rb'\+[0-9.]+ \[[0-9]+ (\S+)\] ("(?:[^"\\]|\\.)*")((?: "(?:[^"\\]|\\.)*")*)\r\n')
PART = re.compile(rb'"(?:[^"\\]|\\.)*"')
CALL = re.compile(r"redis\.p?call\(\s*'(\w+)'")


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[int]:
    """A server whose user `default` has a password; its port."""
    port = free_port()
    command = [str(find_server().path), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--save", "", "--appendonly", "yes", "--requirepass", ADMIN]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            client = redis.Redis(port=port, password=ADMIN)
            until_s = time.monotonic() + PATIENCE_S
            while True:
                with contextlib.suppress(redis.RedisError):
                    client.ping()
                    break
                assert time.monotonic() < until_s, "Redis does not start"
                time.sleep(0.02)
            client.close()
            yield port
        finally:
            process.kill()


@contextlib.contextmanager
def tls_before(port: int, authority: trustme.CA, *, asks_client: bool = False) -> Iterator[int]:
    """What listens with TLS, as `localhost`, and passes all on to a port; its own port.

    With `asks_client` it takes nobody without a certificate of that authority.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    if asks_client:
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
    loop, ready, ports = asyncio.new_event_loop(), threading.Event(), list[int]()
    stop = asyncio.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, behind_writer), pump(behind_reader, writer))

    async def serve() -> None:
        server = await asyncio.start_server(serve_one, "127.0.0.1", 0, ssl=context)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        await stop.wait()
        server.close()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(PATIENCE_S)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE_S)
        loop.close()


class Watcher:
    """Reads MONITOR for as long as its context lasts: which commands each user has sent, scripts' own among them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._users: dict[bytes, str] = {}
        self._commands: dict[bytes, set[str]] = defaultdict(set)
        self._scripts: dict[bytes, set[str]] = defaultdict(set)
        self._texts: dict[str, str] = {}
        self._is_over = threading.Event()

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._read, self._list)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def used_by(self, user: str) -> set[str]:
        """The commands that a user has sent, and those that the scripts which it called may send."""
        theirs = [address for address, name in self._users.items() if name == user]
        used = set().union(*(self._commands[address] for address in theirs))
        shas = set().union(*(self._scripts[address] for address in theirs))
        assert shas <= set(self._texts), "a script was called that nobody has loaded"
        return used | {call.lower() for sha in shas for call in CALL.findall(self._texts[sha])}

    def _list(self) -> None:
        client = redis.Redis(port=self._port, password=ADMIN)
        while not self._is_over.wait(0.02):
            self._users |= {each["addr"].encode(): each["user"] for each in client.client_list()}
        client.close()

    def _read(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port), timeout=0.2) as peer:
            peer.sendall(f"AUTH {ADMIN}\r\nMONITOR\r\n".encode())
            rest, caller = b"", b""
            while not self._is_over.is_set():
                with contextlib.suppress(TimeoutError):
                    rest += peer.recv(1 << 20)
                *lines, rest = rest.split(b"\r\n")
                for line in lines:
                    caller = self._note(line + b"\r\n", caller)

    def _note(self, line: bytes, caller: bytes) -> bytes:
        """Writes down one command; what a script sends comes behind the call of it, and is its caller's."""
        found = LINE.fullmatch(line)
        if found is None:
            return caller
        address, name, rest = found[1], _text(found[2]).lower(), found[3]
        caller = caller if address == b"lua" else address
        self._commands[caller].add(name)
        parts = PART.findall(rest)[:2]
        if name == "evalsha":
            self._scripts[caller].add(_text(parts[0]))
        if name == "script" and _text(parts[0]).lower() == "load":
            text = _text(parts[1])
            self._texts[hashlib.sha1(text.encode()).hexdigest()] = text  # noqa: S324 - as Redis names scripts
        return caller


def _text(quoted: bytes) -> str:
    value: bytes = ast.literal_eval("b" + quoted.decode("ascii"))
    return value.decode(errors="replace")
