"""A batch outlives every process of its service."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from patience import PATIENCE_S

Start = Callable[..., Any]
NUM_LINES = 300


def _lines() -> bytes:
    lines = [
        {
            "custom_id": f"c{number}",
            "method": "POST",
            "url": "/v1/images/generations",
            "body": {"prompt": f"prompt {number}", "steps": 20},
        }
        for number in range(NUM_LINES)
    ]
    return "\n".join(map(json.dumps, lines)).encode()


def _wait(
    url: str, batch_id: str, is_there: Callable[[dict[str, Any]], bool], timeout_s: float
) -> dict[str, Any]:
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        batch = httpx.get(f"{url}/v1/batches/{batch_id}", timeout=PATIENCE_S).json()
        if is_there(batch):
            return dict(batch)
        time.sleep(0.05)
    raise AssertionError(batch)


def test_kill_9_of_everything_loses_and_doubles_no_line(start: Start, tmp_path: Path):
    """Amid a batch; after the next start it goes on once the dead driver's lease is over, and every line is done once."""
    service = start(tmp_path / "data")
    sent = httpx.post(
        f"{service.url}/v1/files",
        data={"purpose": "batch"},
        files={"file": ("lines.jsonl", _lines())},
        timeout=PATIENCE_S,
    )
    body = {
        "input_file_id": sent.json()["id"],
        "endpoint": "/v1/images/generations",
        "completion_window": "24h",
    }
    made = httpx.post(f"{service.url}/v1/batches", json=body, timeout=PATIENCE_S).json()
    begun = _wait(service.url, made["id"], lambda batch: batch["request_counts"]["completed"] >= 20, 60)
    assert begun["status"] == "in_progress"
    service.kill_all()

    again = start(tmp_path / "data")
    batch = _wait(again.url, made["id"], lambda batch: batch["status"] == "completed", 150)
    assert batch["request_counts"] == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
    output = httpx.get(
        f"{again.url}/v1/files/{batch['output_file_id']}/content", timeout=PATIENCE_S
    ).text.splitlines()
    assert [json.loads(line)["custom_id"] for line in output] == [f"c{number}" for number in range(NUM_LINES)]
    answer = again.generate(diversity={"strength": 0}).json()
    assert answer["memory_version"] == NUM_LINES, "each line's image is remembered once"
    assert len(httpx.get(f"{again.url}/v1/files", timeout=PATIENCE_S).json()["data"]) == 2
