"""The images' health check says yes to a healthy process only, and why not to another."""

import subprocess
import sys
from http.server import BaseHTTPRequestHandler

import pytest
from serving import serving


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 503)
        self.end_headers()
        self.wfile.write(b'{"status": "loading"}')

    def log_message(self, *_args):
        """Say nothing."""


@pytest.fixture
def port():
    """The port of a process that answers at /readyz and is unwell everywhere else."""
    with serving(_Handler) as port:
        yield port


def _check(root, port, *arguments):
    return subprocess.run(
        [sys.executable, str(root / "docker" / "check_health.py"), *arguments],
        env={"SPARKE_PORT": str(port)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_a_healthy_answer_ends_with_0(root, port):
    """The address's port comes from the settings."""
    assert _check(root, port, "http://127.0.0.1:{SPARKE_PORT}/readyz").returncode == 0


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:{SPARKE_PORT}/livez", '503: Service Unavailable: {"status": "loading"}'),
        ("http://127.0.0.1:1/livez", "refused"),
        ("no address", "unknown url type"),
    ],
)
def test_an_unhealthy_one_ends_with_1_and_the_reason(root, port, address, reason):
    """An error's status with what it says, and nobody there, are told apart."""
    checked = _check(root, port, address)
    assert checked.returncode == 1
    assert reason in checked.stderr
