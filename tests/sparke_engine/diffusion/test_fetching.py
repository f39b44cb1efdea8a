"""What cannot be downloaded beforehand is left to whoever loads it."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler

from serving import serving

_PROGRAM = """
from sparke_engine.diffusion.fetching import fetch_pipeline
fetch_pipeline("acme/tiny", None, lambda done, total: None)
print("left to the load")
"""


class _Proxy(BaseHTTPRequestHandler):
    """Answers everything with JSON that means nothing to the hub's client."""

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(b"[1, 2]")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        for name, value in (("Content-Length", "6"), ("ETag", '"a"'), ("X-Repo-Commit", "a" * 40)):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_whatever_answers_in_the_hubs_place_is_no_error_here(tmp_path):
    """A portal or a proxy: its answer makes errors of any class in the hub's client, and the load says what is wrong."""
    with serving(_Proxy) as port:
        given = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            env={**os.environ, **given},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
    assert done.stdout == "left to the load\n", done.stderr
