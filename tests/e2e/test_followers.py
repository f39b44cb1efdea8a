"""A worker is killed in the middle of an image, and whoever follows its job at another replica misses nothing."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from patience import PATIENCE_S

LEASE_S = 6.0
QUICK = {"SPARKE_HEARTBEAT_INTERVAL_S": "0.3", "SPARKE_HEARTBEAT_TTL_S": str(LEASE_S)}
SAID = "SPARKE API: "


def _events(url: str, job_id: str, last_event_id: str = "") -> Iterator[dict[str, Any]]:
    """The job's events, with their ids, as they come."""
    headers = {"last-event-id": last_event_id} if last_event_id else {}
    with httpx.stream("GET", f"{url}/v1/jobs/{job_id}/events", headers=headers, timeout=60) as answer:
        assert answer.status_code == 200
        event: dict[str, Any] = {}
        for line in answer.iter_lines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
            elif line.startswith("id: "):
                yield {**event, "id": line.removeprefix("id: ")}


def _wait_until(holds: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until_s, what
        time.sleep(0.05)


def _num_ready(url: str) -> int:
    return int(httpx.get(f"{url}/readyz", timeout=PATIENCE_S).json()["workers"]["ready"])


def test_a_worker_killed_in_mid_image_and_a_follower_that_changes_replica(
    start: Any, beside: Any, tmp_path: Path
):
    """The job ends within a lease and an image of the kill; the follower has every event, in order, each once."""
    service = start(tmp_path / "data", **QUICK)
    body = {"prompt": "a star", "steps": 10_000}
    with beside("api", "--port", "0", **QUICK) as api, beside("worker", **QUICK) as heir:
        assert api.stdout is not None
        other_url = api.stdout.readline().removeprefix(SAID).strip()
        _wait_until(lambda: _num_ready(service.url) == 2, "the second worker did not get ready")
        began_s = time.monotonic()
        assert httpx.post(f"{service.url}/v1/images/generations", json=body, timeout=60).status_code == 200
        image_s = time.monotonic() - began_s
        heir.send_signal(signal.SIGSTOP)  # so that the other one has the job
        job_id = httpx.post(f"{service.url}/v1/jobs", json=body, timeout=PATIENCE_S).json()["id"]
        seen = []
        for event in _events(service.url, job_id):
            seen.append(event)
            if event["type"] == "progress":
                break
        os.kill(service.worker_pids[0], signal.SIGKILL)
        heir.send_signal(signal.SIGCONT)
        killed_s = time.monotonic()
        seen += _events(other_url, job_id, seen[-1]["id"])
        took_s = time.monotonic() - killed_s
        whole = list(_events(service.url, job_id))
    kinds = [event["type"] for event in seen if event["type"] != "progress"]
    assert kinds == ["queued", "running", "queued", "running", "succeeded"]
    assert [event["id"] for event in seen] == [event["id"] for event in whole]
    assert took_s < 2 * LEASE_S + 3 * image_s, f"{took_s:.1f} s, an image takes {image_s:.1f} s"
