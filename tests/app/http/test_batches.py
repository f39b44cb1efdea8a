"""The official client runs batches, unchanged, with the real worker and the weightless toy model."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch
from patience import PATIENCE_S, wait_until
from prometheus_client.parser import text_string_to_metric_families

from app.domain.ids import TenantId
from app.http.process.wiring import open_deps
from app.settings import Settings

ServeApi = Callable[[Settings], str]

_BATCH = {"endpoint": "/v1/images/generations", "completion_window": "24h"}


def _line(custom_id: str, **body: object) -> dict[str, object]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/images/generations", "body": body}


def _upload(client: openai.OpenAI, *lines: dict[str, object] | str) -> str:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    content = "\n".join(texts).encode()
    return client.files.create(file=("lines.jsonl", content), purpose="batch").id


def _wait(client: openai.OpenAI, batch_id: str) -> Batch:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        batch = client.batches.retrieve(batch_id)
        if batch.status in {"completed", "failed", "expired", "cancelled"}:
            return batch
        time.sleep(0.05)
    pytest.fail(f"the batch is {batch.status}: {batch.request_counts}")


def _read(client: openai.OpenAI, file_id: str | None) -> list[dict[str, object]]:
    assert file_id is not None
    assert client.files.retrieve(file_id).purpose == "batch_output"
    return [json.loads(line) for line in client.files.content(file_id).read().splitlines()]


@pytest.fixture
def quiet(serve_api: ServeApi, settings: Settings) -> Iterator[openai.OpenAI]:
    """A client of an API whose Redis no worker looks at."""
    apart = settings.model_copy(
        update={"redis_url": f"{settings.redis_url}?db=8", "max_open_batches_per_tenant": 3}
    )
    with openai.OpenAI(base_url=f"{serve_api(apart)}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_what_holds_a_batch_up_is_a_member_of_its_own(serve_api: ServeApi, settings: Settings):
    """Three images a day: the official client shows which line waits, and why, and which can never be done."""
    few = settings.model_copy(update={"redis_url": f"{settings.redis_url}?db=9", "images_per_day": 3})
    with openai.OpenAI(base_url=f"{serve_api(few)}/v1", api_key="unused", max_retries=0) as client:
        lines = [_line(f"of {n}, {at}", prompt="a star", n=n) for at, n in enumerate((2, 4, 2))]
        made = client.batches.create(input_file_id=_upload(client, *lines), **_BATCH)
        assert made.to_dict()["held_up"] is None

        def held_up() -> Any:
            return client.batches.retrieve(made.id).to_dict()["held_up"]

        wait_until(lambda: held_up() is not None)
        told, batch = held_up(), client.batches.retrieve(made.id)
        assert (told["code"], told["line"], told["param"]) == ("insufficient_quota", 3, "body")
        assert "you may ask for 3 images a day, of which 1 are left" in told["message"]
        assert (batch.status, batch.request_counts and batch.request_counts.failed) == ("in_progress", 1)
        assert [(fault.line, fault.code) for fault in (batch.errors and batch.errors.data) or ()] == [
            (2, "insufficient_quota")
        ]
        client.batches.cancel(made.id)
        assert _wait(client, made.id).status == "cancelled"


@pytest.mark.usefixtures("worker")
def test_a_batch_from_its_file_to_its_images(client: openai.OpenAI):
    """Good lines have answers with URLs that show images; a bad line costs only itself, and is told with its number."""
    file_id = _upload(
        client,
        _line("one", prompt="a red circle", n=2, size="96x64", seed=5),
        _line("two", prompt=""),
        "",
        "{",
        _line("three", prompt="a star", diversity={"memory": {"version": 900}}),
        _line("one", prompt="a star"),
        _line("four", prompt="a star", response_format="b64_json"),
    )
    made = client.batches.create(input_file_id=file_id, metadata={"campaign": "spring"}, **_BATCH)
    assert (made.object, made.endpoint, made.completion_window) == ("batch", *_BATCH.values())
    assert (made.status, made.input_file_id, made.metadata) == ("validating", file_id, {"campaign": "spring"})
    assert made.expires_at == made.created_at + 86_400
    batch = _wait(client, made.id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 6, "completed": 1, "failed": 5}
    assert batch.errors is not None
    faults = [(fault.line, fault.code, fault.param) for fault in batch.errors.data or ()]
    assert faults == [
        (2, "invalid_value", "body.prompt"),
        (4, "invalid_json", None),
        (6, "duplicate_custom_id", "custom_id"),
        (7, "invalid_value", "body.response_format"),
    ]
    times = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert times == sorted(times, key=lambda at: at or 0)

    [answer] = _read(client, batch.output_file_id)
    assert set(answer) == {"id", "custom_id", "response", "error"}
    assert (answer["custom_id"], answer["error"]) == ("one", None)
    response = answer["response"]
    assert response["status_code"] == 200
    assert [image["seed"] for image in response["body"]["data"]] == [5, 6]
    assert all("b64_json" not in image for image in response["body"]["data"])
    shown = httpx.get(response["body"]["data"][1]["url"], timeout=PATIENCE_S)
    assert (shown.status_code, shown.headers["content-type"]) == (200, "image/png")

    errors = _read(client, batch.error_file_id)
    assert [error["custom_id"] for error in errors] == ["two", None, "three", "one", "four"]
    assert [error.get("line") for error in errors] == [2, 4, None, 6, 7]
    assert errors[2]["response"]["status_code"] == 400
    assert errors[2]["response"]["body"]["error"]["param"] == "diversity.memory.version"
    assert errors[0]["error"]["code"] == "invalid_value"


@pytest.mark.usefixtures("worker")
def test_a_file_without_a_good_line_fails_its_batch(client: openai.OpenAI):
    """The batch says what is wrong, in general and with each line."""
    made = client.batches.create(input_file_id=_upload(client, "no", "{}"), **_BATCH)
    batch = _wait(client, made.id)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert [(fault.code, fault.line) for fault in batch.errors.data or ()] == [
        ("no_valid_line", None),
        ("invalid_json", 1),
        ("missing_required_parameter", 2),
    ]


def test_a_cancel(quiet: openai.OpenAI):
    """At once it is on its way; once more changes nothing; what was not done is in the error file."""
    file_id = _upload(quiet, *(_line(f"l{number}", prompt="a star") for number in range(100)))
    made = quiet.batches.create(input_file_id=file_id, **_BATCH)
    assert quiet.batches.cancel(made.id).status in {"cancelling", "cancelled"}
    batch = _wait(quiet, made.id)
    assert batch.status == "cancelled"
    assert batch.cancelled_at is not None
    assert quiet.batches.cancel(made.id) == batch


def test_a_cancelled_batchs_jobs_are_counted(quiet: openai.OpenAI):
    """Each that had not begun, by the process that drives the batch."""

    def counted(name: str) -> float:
        text = httpx.get(str(quiet.base_url.join("/metrics")), timeout=PATIENCE_S).text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return sum(sample.value for sample in samples if sample.name == name)

    accepted, cancelled = counted("sparke_jobs_accepted_total"), counted("sparke_jobs_cancelled_total")
    file_id = _upload(quiet, *(_line(f"l{number}", prompt="a star") for number in range(3)))
    made = quiet.batches.create(input_file_id=file_id, **_BATCH)
    deadline_s = time.monotonic() + PATIENCE_S
    while counted("sparke_jobs_accepted_total") < accepted + 3:
        assert time.monotonic() < deadline_s, "the lines do not become jobs"
        time.sleep(0.05)
    quiet.batches.cancel(made.id)
    _wait(quiet, made.id)
    assert counted("sparke_jobs_cancelled_total") == cancelled + 3


def test_an_ended_batch_cannot_be_cancelled(quiet: openai.OpenAI):
    """409, which the client is told not to repeat."""
    made = quiet.batches.create(input_file_id=_upload(quiet, "{}"), **_BATCH)
    _wait(quiet, made.id)
    with pytest.raises(openai.ConflictError) as caught:
        quiet.batches.cancel(made.id)
    assert caught.value.code == "batch_over"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_the_official_client_lists_batches(quiet: openai.OpenAI):
    """Page by page, the newest first, with what each was given."""
    made = []
    for number in range(5):
        batch = quiet.batches.create(
            input_file_id=_upload(quiet, "{}"), metadata={"number": str(number)}, **_BATCH
        )
        made.append(batch.id)
        _wait(quiet, batch.id)
    found = [batch for batch in quiet.batches.list(limit=2) if batch.id in made]
    assert [batch.id for batch in found] == made[::-1]
    assert [(batch.metadata or {})["number"] for batch in found] == list("43210")
    page = quiet.batches.list(limit=2, after=found[1].id)
    assert ([batch.id for batch in page.data], page.has_more) == ([batch.id for batch in found[2:4]], True)


def test_a_tenant_may_have_a_bounded_number_unfinished(quiet: openai.OpenAI):
    """One more is a 429 that says when to try again."""
    file_id = _upload(quiet, _line("one", prompt="a star"))
    made = [quiet.batches.create(input_file_id=file_id, **_BATCH).id for _ in range(3)]
    with pytest.raises(openai.RateLimitError) as caught:
        quiet.batches.create(input_file_id=file_id, **_BATCH)
    assert caught.value.code == "too_many_batches"
    assert int(caught.value.response.headers["retry-after"]) > 0
    for batch_id in made:
        quiet.batches.cancel(batch_id)
        _wait(quiet, batch_id)


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"input_file_id": "file-" + "0" * 36}, 404, "not_found", "input_file_id"),
        ({"input_file_id": "../etc"}, 404, "not_found", "input_file_id"),
        ({"input_file_id": None}, 400, "invalid_type", "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, 400, "invalid_value", "endpoint"),
        ({"completion_window": "1h"}, 400, "invalid_value", "completion_window"),
        ({"odd": 1}, 400, "unknown_parameter", "odd"),
        ({"metadata": {str(number): "x" for number in range(17)}}, 400, "invalid_value", "metadata"),
        ({"metadata": {"x": "y" * 513}}, 400, "string_above_max_length", "metadata.x"),
        ({"metadata": {"x": 1}}, 400, "invalid_type", "metadata.x"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
            400,
            "invalid_value",
            "output_expires_after.seconds",
        ),
    ],
)
def test_a_bad_request(
    client: openai.OpenAI, http: httpx.Client, changes: dict[str, object], status: int, code: str, param: str
):
    """It is refused with the member at fault."""
    body = {"input_file_id": _upload(client, "{}"), **_BATCH, **changes}
    answer = http.post("/v1/batches", json=body)
    assert (answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]) == (
        status,
        code,
        param,
    )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/batches/batch_" + "0" * 36, 404),
        ("GET", "/v1/batches/odd", 404),
        ("POST", "/v1/batches/batch_" + "0" * 36 + "/cancel", 404),
        ("POST", "/v1/batches/odd/cancel", 404),
        ("GET", "/v1/batches?limit=0", 400),
        ("GET", "/v1/batches?limit=101", 400),
        ("GET", "/v1/batches?after=odd", 400),
    ],
)
def test_what_names_no_batch(http: httpx.Client, method: str, path: str, status: int):
    """An id that cannot be one is not found either."""
    answer = http.request(method, path)
    assert answer.status_code == status, answer.text


@pytest.mark.usefixtures("worker")
def test_output_files_live_as_long_as_was_asked(client: openai.OpenAI):
    """And a file that a batch made is no input of another."""
    made = client.batches.create(
        input_file_id=_upload(client, _line("one", prompt="a star")),
        output_expires_after={"anchor": "created_at", "seconds": 3600},
        **_BATCH,
    )
    batch = _wait(client, made.id)
    output = client.files.retrieve(batch.output_file_id or "")
    assert (output.expires_at or 0) - output.created_at == 3600
    with pytest.raises(openai.BadRequestError) as caught:
        client.batches.create(input_file_id=output.id, **_BATCH)
    assert caught.value.param == "input_file_id"


def test_another_tenants_batch_is_not_found(serve_api: ServeApi, settings: Settings):
    """Neither its file nor the batch itself, by any route."""
    apart = settings.model_copy(update={"redis_url": f"{settings.redis_url}?db=7"})
    url = serve_api(apart)

    async def make_keys() -> list[str]:
        async with open_deps(apart, apart.redis_url or "") as deps:
            return [await deps.keys.create(TenantId(name)) for name in ("acme", "bolt")]

    mine, theirs = (
        openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) for key in asyncio.run(make_keys())
    )
    with mine, theirs:
        file_id = _upload(mine, "{}")
        made = mine.batches.create(input_file_id=file_id, **_BATCH)
        for ask in (
            lambda: theirs.batches.create(input_file_id=file_id, **_BATCH),
            lambda: theirs.batches.retrieve(made.id),
            lambda: theirs.batches.cancel(made.id),
        ):
            with pytest.raises(openai.NotFoundError):
                ask()
        assert theirs.batches.list().data == []
        assert _wait(mine, made.id).status == "failed"


def test_a_batch_that_is_asked_for_again_is_the_same(quiet: openai.OpenAI):
    """With its key; another request under the key is refused, and without one it is another batch."""
    file_id, other_id = _upload(quiet, _line("one", prompt="x")), _upload(quiet, _line("one", prompt="y"))
    before = len(quiet.batches.list(limit=100).data)
    headers = {"idempotency-key": "spring"}
    first, again = (
        quiet.batches.create(input_file_id=file_id, extra_headers=headers, **_BATCH) for _ in range(2)
    )
    assert first.id == again.id
    with pytest.raises(openai.UnprocessableEntityError):
        quiet.batches.create(input_file_id=other_id, extra_headers=headers, **_BATCH)
    assert quiet.batches.create(input_file_id=file_id, **_BATCH).id != first.id
    assert len(quiet.batches.list(limit=100).data) == before + 2
    for batch in quiet.batches.list(limit=2).data:
        quiet.batches.cancel(batch.id)


def test_its_key_names_a_batch_whatever_became_of_its_file(
    quiet: openai.OpenAI, serve_api: ServeApi, settings: Settings
):
    """Deleted, or with no room for another: it is looked up before either. Without the key, or under another, both are asked."""
    headers = {"idempotency-key": "summer"}
    file_id = _upload(quiet, _line("one", prompt="x"))
    made = quiet.batches.create(input_file_id=file_id, extra_headers=headers, **_BATCH)
    full = settings.model_copy(update={"redis_url": f"{settings.redis_url}?db=8", "max_files_per_tenant": 1})
    with openai.OpenAI(base_url=f"{serve_api(full)}/v1", api_key="unused", max_retries=0) as crowded:
        again = crowded.batches.create(input_file_id=file_id, extra_headers=headers, **_BATCH)
        with pytest.raises(openai.BadRequestError, match="files"):
            crowded.batches.create(input_file_id=file_id, **_BATCH)
    quiet.files.delete(file_id)
    assert (
        quiet.batches.create(input_file_id=file_id, extra_headers=headers, **_BATCH).id == again.id == made.id
    )
    for other in ({}, {"idempotency-key": "autumn"}):
        with pytest.raises(openai.NotFoundError):
            quiet.batches.create(input_file_id=file_id, extra_headers=other, **_BATCH)
    with pytest.raises(openai.UnprocessableEntityError):
        quiet.batches.create(input_file_id="file-other", extra_headers=headers, **_BATCH)
    quiet.batches.cancel(made.id)
