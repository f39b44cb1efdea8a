"""A batch outlives every process of its service."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from patience import PATIENCE_S, wait_until

Start = Callable[..., Any]
NUM_LINES = 150
MOST_A_DAY = 70
"""Images that the first service makes on a day, so that it is amid the batch whenever somebody looks, also after midnight."""
LONG = range(66, MOST_A_DAY)
"""The lines whose images take so long that they are in flight then."""


def _lines() -> bytes:
    lines = [
        {
            "custom_id": f"c{number}",
            "method": "POST",
            "url": "/v1/images/generations",
            "body": {"prompt": f"prompt {number}", "steps": 4000 if number in LONG else 20},
        }
        for number in range(NUM_LINES)
    ]
    return "\n".join(map(json.dumps, lines)).encode()


def _wait(url: str, batch_id: str, is_there: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        batch = httpx.get(f"{url}/v1/batches/{batch_id}", timeout=PATIENCE_S).json()
        return dict(batch) if is_there(batch) else None

    found = wait_until(look)
    assert found is not None
    return found


def test_kill_9_of_everything_loses_and_doubles_no_line(start: Start, tmp_path: Path):
    """Amid a batch; after the next start it goes on once the dead driver's lease is over, and every line is done once."""
    service = start(tmp_path / "data", SPARKE_IMAGES_PER_DAY=str(MOST_A_DAY))
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
    begun = _wait(service.url, made["id"], lambda batch: batch["request_counts"]["completed"] >= 20)
    assert begun["status"] == "in_progress"
    service.kill_all()

    again = start(tmp_path / "data")
    _wait(again.url, made["id"], lambda batch: batch["request_counts"]["completed"] > 2 * MOST_A_DAY)
    batch = _wait(again.url, made["id"], lambda batch: batch["status"] == "completed")
    assert batch["request_counts"] == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
    output = httpx.get(
        f"{again.url}/v1/files/{batch['output_file_id']}/content", timeout=PATIENCE_S
    ).text.splitlines()
    assert [json.loads(line)["custom_id"] for line in output] == [f"c{number}" for number in range(NUM_LINES)]
    answer = again.generate(diversity={"strength": 0}).json()
    assert answer["memory_version"] == NUM_LINES, "each line's image is remembered once"
    assert len(httpx.get(f"{again.url}/v1/files", timeout=PATIENCE_S).json()["data"]) == 2
