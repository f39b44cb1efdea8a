"""The API's main, alone."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from patience import PATIENCE_S

from app.errors import ConfigurationError
from app.http.process.server import bind, url_of
from app.redis.embedded import EmbeddedRedis


def test_api_starts_in_a_moment_and_stops_at_a_signal(tmp_path: Path):
    """`sparke api` on the Redis of a data directory prints its URL, answers, and ends with exit code 0."""
    command = [sys.executable, "-P", "-m", "app.cli", "api", "--port", "0", "--data-dir", str(tmp_path)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPARKE_")}
    with EmbeddedRedis.start(tmp_path):
        before = os.times()
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process.stdout:
            url = process.stdout.readline().removeprefix("SPARKE API: ").strip()
            assert httpx.get(f"{url}/readyz", timeout=PATIENCE_S).json()["state"] == "no_worker"
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
            assert process.stdout.read() == ""
        after = os.times()  # of children that have ended: what it computed, however busy the machine is
        took_s = sum(after[2:4]) - sum(before[2:4])
        assert took_s < 10, "about a second where it was measured"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])  # noqa: S104
def test_the_url_leads_to_the_listener(host: str):
    """Whatever it is bound to, the URL that is shown reaches it."""
    with bind(host, 0) as listener:
        address = httpx.URL(url_of(listener))
        with socket.create_connection((address.host.strip("[]"), address.port or 0), timeout=PATIENCE_S):
            pass


@pytest.mark.parametrize(
    ("host", "said"), [("nowhere.invalid", "not an address"), ("192.0.2.1", "cannot listen on")]
)
def test_a_host_that_is_not_ours(host: str, said: str):
    """A message, not a traceback."""
    with pytest.raises(ConfigurationError, match=said):
        bind(host, 0)


def test_who_waits_for_longer_than_a_stop_is_told_to_ask_again(tmp_path: Path):
    """Before its connection would break: 503 with Retry-After."""
    command = [sys.executable, "-P", "-m", "app.cli", "api", "--port", "0", "--data-dir", str(tmp_path)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPARKE_")}
    env |= {"SPARKE_STOP_TIMEOUT_S": "4", "SPARKE_NO_WORKER_GRACE_S": "300"}
    with EmbeddedRedis.start(tmp_path), ThreadPoolExecutor(1) as pool:
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process.stdout, httpx.Client(timeout=60) as client:
            url = process.stdout.readline().removeprefix("SPARKE API: ").strip()
            asked = pool.submit(client.post, f"{url}/v1/images/generations", json={"prompt": "a star"})
            until_s = time.monotonic() + PATIENCE_S
            while not httpx.get(f"{url}/v1/jobs", timeout=PATIENCE_S).json()["data"]:
                assert time.monotonic() < until_s
            process.send_signal(signal.SIGTERM)
            answer = asked.result()
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
            assert answer.headers["retry-after"]
            assert process.wait(PATIENCE_S) == 0


def test_a_stopping_api_says_so_and_answers_all_the_same(tmp_path: Path):
    """For as long as its notice lasts: `/readyz` is 503, answers close their connections, new ones are taken; then it ends."""
    command = [sys.executable, "-P", "-m", "app.cli", "api", "--port", "0", "--data-dir", str(tmp_path)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPARKE_")}
    with EmbeddedRedis.start(tmp_path):
        process = subprocess.Popen(
            command, env={**env, "SPARKE_STOP_NOTICE_S": "10"}, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout, httpx.Client(timeout=PATIENCE_S) as client:
            url = process.stdout.readline().removeprefix("SPARKE API: ").strip()
            assert "connection" not in client.get(f"{url}/livez").headers
            process.send_signal(signal.SIGTERM)
            until_s = time.monotonic() + PATIENCE_S
            while client.get(f"{url}/readyz?exclude=workers").status_code == 200:
                assert time.monotonic() < until_s
            told = client.get(f"{url}/readyz?exclude=workers")
            assert (told.status_code, told.json()["state"]) == (503, "stopping")
            answer = httpx.get(f"{url}/v1/models", timeout=PATIENCE_S)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            assert process.wait(PATIENCE_S) == 0
