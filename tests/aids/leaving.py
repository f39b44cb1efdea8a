"""Clients that ask for something and go away without an answer, once a test has seen that they were heard."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from patience import PATIENCE_S


@contextmanager
def asking(url: str, body: dict[str, Any]) -> Iterator[None]:
    """Has sent a JSON body for as long as the context lasts; then its connection breaks."""
    there, content = httpx.URL(url), json.dumps(body).encode()
    head = (
        f"POST {there.raw_path.decode()} HTTP/1.1\r\nhost: {there.host}\r\ncontent-type: application/json\r\n"
    )
    with socket.create_connection((there.host, there.port or 80), timeout=PATIENCE_S) as connection:
        connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        yield
