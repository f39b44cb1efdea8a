"""The images' health check says yes to a healthy process only, and why not to another."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/metrics" else 503)
        self.end_headers()
        self.wfile.write(b'# HELP sparke_worker_ready 1 while\nsparke_worker_ready{model="toy"} 1.0\n')

    def log_message(self, *_args):
        """Say nothing."""


@pytest.fixture
def port():
    """The port of a process that answers at /metrics and is unwell everywhere else."""
    with HTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def _check(root, port, *arguments):
    return subprocess.run(
        [sys.executable, str(root / "docker" / "check_health.py"), *arguments],
        env={"SPARKE_PORT": str(port)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_a_healthy_answer_ends_with_0(root, port):
    """The address's port comes from the settings, and the text is in the answer."""
    url = "http://127.0.0.1:{SPARKE_PORT}/metrics"
    assert _check(root, port, url).returncode == 0
    assert _check(root, port, url, "sparke_worker_ready{").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("http://127.0.0.1:{SPARKE_PORT}/readyz",), "503"),
        (("http://127.0.0.1:{SPARKE_PORT}/metrics", 'model="sdxl"'), "lacks"),
        (("http://127.0.0.1:1/livez",), "refused"),
    ],
)
def test_an_unhealthy_one_ends_with_1_and_the_reason(root, port, arguments, reason):
    """A status of an error, a missing text, and nobody there are each told apart."""
    checked = _check(root, port, *arguments)
    assert checked.returncode == 1
    assert reason in checked.stderr
