"""One Idempotency-Key is one job with one answer, whatever dies in between."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from patience import PATIENCE_S
from processes import free_port

NUM_CLIENTS = 16
BODY = {"prompt": "a star", "n": 2, "steps": 50}
KEY = {"idempotency-key": "sixteen"}
SAID = "SPARKE API: "


def _num_connected(port: int) -> int:
    """How many connections to the port the server has."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    local_and_state = [(fields[1], fields[3]) for fields in map(str.split, lines)]
    return sum(local.endswith(f":{port:04X}") and state == "01" for local, state in local_and_state)


def _ask_until_answered(url: str) -> tuple[httpx.Response, int]:
    """The answer of a client that asks again whenever its request breaks off, and how often that was."""
    until_s, num_broken = time.monotonic() + PATIENCE_S, 0
    while True:
        try:
            answer = httpx.post(f"{url}/v1/images/generations", json=BODY, headers=KEY, timeout=PATIENCE_S)
        except httpx.TransportError:
            assert time.monotonic() < until_s, "nobody answered"
            num_broken += 1
            time.sleep(0.2)
        else:
            return answer, num_broken


def _wait_until_all_wait(url: str, port: int) -> None:
    """Returns when every client is connected, and their job is accepted but not done."""
    until_s = time.monotonic() + PATIENCE_S
    while _num_connected(port) < NUM_CLIENTS or not _jobs(url):
        assert time.monotonic() < until_s, "not all clients came to wait"
        time.sleep(0.05)
    time.sleep(0.5)  # so that the last of them has sent its request, too


def _jobs(url: str) -> list[dict[str, Any]]:
    return list(httpx.get(f"{url}/v1/jobs", params={"limit": 100}, timeout=PATIENCE_S).json()["data"])


def test_sixteen_clients_whose_api_is_killed_get_one_answer(start: Any, beside: Any, tmp_path: Path):
    """The API is killed while all sixteen wait, and comes back: one job, one answer, and its images remembered once."""
    service, port = start(tmp_path / "data"), free_port()
    url = f"http://127.0.0.1:{port}"
    [worker_pid] = service.worker_pids
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        os.kill(worker_pid, signal.SIGSTOP)  # so that nothing is done before the kill
        try:
            with beside("api", "--port", str(port)) as first:
                assert first.stdout.readline().strip() == f"{SAID}{url}"
                asked = [pool.submit(_ask_until_answered, url) for _ in range(NUM_CLIENTS)]
                _wait_until_all_wait(service.url, port)
                first.kill()
        finally:
            os.kill(worker_pid, signal.SIGCONT)
        with beside("api", "--port", str(port)):
            answers = [one.result() for one in asked]
            [job] = _jobs(url)
            other = httpx.post(
                f"{url}/v1/images/generations", json={**BODY, "seed": 8}, headers=KEY, timeout=PATIENCE_S
            )
    assert all(num_broken > 0 for _, num_broken in answers)
    assert {answer.status_code for answer, _ in answers} == {200}
    assert len({answer.content for answer, _ in answers}) == 1
    assert [image["id"] for image in answers[0][0].json()["data"]] == [f"{job['id']}-0", f"{job['id']}-1"]
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")
    assert service.generate().json()["memory_version"] == BODY["n"]
