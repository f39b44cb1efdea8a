"""The official client's way through a batch of thousands of lines."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

NUM_LINES = 2000
BAD_LINES = range(50, NUM_LINES + 1, 100)  # counted from 1, as errors do
ENDED = {"completed", "failed", "expired", "cancelled"}
TIMEOUT_S = 400.0
_BATCH: Any = {"endpoint": "/v1/images/generations", "completion_window": "24h"}


def _line(number: int) -> str:
    """A line; a bad one asks for no image, for a size that the model has not, or is no JSON at all."""
    body: dict[str, object] = {"prompt": f"prompt {number}", "seed": number}
    if number in BAD_LINES:
        kind = number // 100 % 3
        if kind == 0:
            return '{"custom_id": '
        body |= {"prompt": ""} if kind == 1 else {"size": "7x7"}
    line = {"custom_id": f"c{number}", "method": "POST", "url": "/v1/images/generations", "body": body}
    return json.dumps(line)


def _wait(client: openai.OpenAI, batch_id: str, is_there: Callable[[Batch], bool]) -> Batch:
    until_s = time.monotonic() + TIMEOUT_S
    while not is_there(batch := client.batches.retrieve(batch_id)):
        assert time.monotonic() < until_s, f"{batch.status}, {batch.request_counts}"
        time.sleep(0.2)
    return batch


def _read(client: openai.OpenAI, file_id: str | None) -> list[Any]:
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).read().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 100)
def test_two_thousand_lines_of_which_twenty_are_bad(start: Any, tmp_path: Path):
    """Each good line is answered once, each bad one told with its number; another batch is cancelled on its way."""
    service = start(tmp_path / "data", SPARKE_MAX_BATCH_LINES_WAITING="256")
    content = "\n".join(_line(number) for number in range(1, NUM_LINES + 1)).encode()
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=2) as client:
        uploaded = client.files.create(file=("lines.jsonl", content), purpose="batch")
        made = client.batches.create(input_file_id=uploaded.id, **_BATCH)
        batch = _wait(client, made.id, lambda found: found.status in ENDED)
        answers, errors = _read(client, batch.output_file_id), _read(client, batch.error_file_id)
        second = client.batches.create(input_file_id=uploaded.id, **_BATCH)
        _wait(client, second.id, lambda found: bool(found.request_counts and found.request_counts.completed))
        client.batches.cancel(second.id)
        cancelled = _wait(client, second.id, lambda found: found.status in ENDED)
        num_kept = len(_read(client, cancelled.output_file_id))
    good = [number for number in range(1, NUM_LINES + 1) if number not in BAD_LINES]
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": NUM_LINES, "completed": len(good), "failed": 20}
    assert [answer["custom_id"] for answer in answers] == [f"c{number}" for number in good]
    assert [answer["response"]["body"]["data"][0]["seed"] for answer in answers] == good
    assert [error["line"] for error in errors] == list(BAD_LINES)
    assert cancelled.status == "cancelled"
    assert 0 < num_kept < len(good)
    assert service.generate().json()["memory_version"] == len(good) + num_kept
