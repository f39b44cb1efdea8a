"""A model hub on this machine: enough of its API for one pipeline to be found and downloaded, its files not before a test says so."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from patience import PATIENCE_S
from serving import serving

COMMIT = "a" * 40
_WARNING = {"X-HF-Warning": "unauthenticated; sign in to be served faster"}  # which the hub's client logs


def _handler(  # noqa: C901 - one class, whose methods are short
    name: str, folder: Path, fetched: list[str], held_back: Mapping[str, threading.Event]
) -> type[BaseHTTPRequestHandler]:
    files = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(has_body=False)

        def do_GET(self) -> None:
            self._answer(has_body=True)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

        def _answer(self, *, has_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            info, resolve = f"/api/models/{name}", f"/{name}/resolve/"
            if path.startswith(resolve) and path.removeprefix(resolve).partition("/")[2] in files:
                self._file(path.removeprefix(resolve).partition("/")[2], has_body=has_body)
            elif path.startswith(f"{info}/tree/"):
                self._json([_entry(each, files[each]) for each in files])
            elif path == info or path.startswith(f"{info}/revision/"):
                siblings = [{"rfilename": each} for each in files]
                self._json(
                    {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False}
                )
            else:
                self._head(404, 0, {"X-Error-Code": "EntryNotFound"})

        def _json(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self._head(200, len(body), {"Content-Type": "application/json"})
            self.wfile.write(body)

        def _file(self, file: str, *, has_body: bool) -> None:
            data = files[file].read_bytes()
            self._head(
                200,
                len(data),
                {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"},
            )
            if has_body:
                fetched.append(file)
                half = len(data) // 2
                self.wfile.write(data[:half])
                if file in held_back:
                    assert held_back[file].wait(PATIENCE_S), f"nobody let go of {file}"
                self.wfile.write(data[half:])

        def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, **_WARNING, "Content-Length": str(length)}.items():
                self.send_header(key, value)
            self.end_headers()

    return Hub


@contextmanager
def local_hub(
    name: str, folder: Path, *, held_back: Mapping[str, threading.Event] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Serves a folder as the repository `name`; its URL, and the files that were downloaded.

    Of a file that is `held_back` the second half comes once its event is set.
    """
    fetched: list[str] = []
    with serving(_handler(name, folder, fetched, held_back or {})) as port:
        yield f"http://127.0.0.1:{port}", fetched


def _entry(name: str, path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}


def _etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
