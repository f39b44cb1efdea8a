"""What a line may be, what is wrong with one that may not, and what is written of it."""

import asyncio
import json
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.batches.keys import line_job_id
from app.batches.types import RawLine
from app.domain.batch import Batch, LineFault
from app.domain.ids import LatentSpace, MemoryName, TenantId, image_id, make_batch_id, make_file_id
from app.domain.job import Job, JobKind, JobRecord, JobState
from app.domain.result import Failure, GeneratedImage, GenerationResult
from app.errors import Unauthenticated
from app.http.course.batch_lines import WireForms
from app.http.process.wiring import open_deps
from app.settings import Settings

BATCH = Batch(
    tenant_id=TenantId("acme"),
    batch_id=make_batch_id(10**12, bytes(12)),
    input_file_id=make_file_id(1, bytes(12)),
    input_bytes=1,
    base_url="http://here",
    created_at_ms=10**12,
    expires_at_ms=10**12 + 86_400_000,
    output_ttl_s=86_400,
)
JOB_ID = line_job_id(BATCH, 7)


@pytest.fixture(scope="module")
def forms(settings: Settings, redis_url: str) -> WireForms:
    """The forms over a real API's catalogue, signer and settings."""

    async def make() -> WireForms:
        async with open_deps(settings, redis_url) as deps:
            return WireForms(deps)

    return asyncio.run(make())


def _line(**changes: object) -> dict[str, object]:
    line = {
        "custom_id": "one",
        "method": "POST",
        "url": "/v1/images/generations",
        "body": {"prompt": "a star"},
    }
    return {name: value for name, value in (line | changes).items() if value != "absent"}


def _read(forms: WireForms, line: object, number: int = 7):
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    return forms.read(BATCH, RawLine(number, data))


def test_a_good_line(forms: WireForms):
    """It becomes the request that the endpoint would have made of its body."""
    body = {"prompt": "a star", "n": 3, "size": "96x64", "seed": 5, "model": "toy", "response_format": "url"}
    found = _read(forms, _line(body=body))
    assert (found.number, found.custom_id, found.fault) == (7, "one", None)
    request = found.request
    assert (request.prompt, request.num_images, request.width_px, request.height_px) == ("a star", 3, 96, 64)
    assert (request.seed, request.model, request.steps) == (5, "toy", 3)


def test_a_seed_follows_from_batch_and_line(forms: WireForms):
    """The same line read twice is the same request; another line has another seed."""
    assert _read(forms, _line()) == _read(forms, _line())
    seeds = {_read(forms, _line(), number).request.seed for number in range(1, 50)}
    assert len(seeds) == 49


@pytest.mark.parametrize(
    ("line", "custom_id", "code", "param"),
    [
        (b"{", None, "invalid_json", None),
        (b'{"custom_id": "one", "body": {"seed": NaN}}', None, "invalid_json", None),
        (b'{"custom_id": "\\ud800"}', None, "invalid_json", None),
        (b"\xff", None, "invalid_json", None),
        ([], None, "invalid_value", None),
        ("text", None, "invalid_value", None),
        (_line(custom_id="absent"), None, "missing_required_parameter", "custom_id"),
        (_line(custom_id=""), None, "string_below_min_length", "custom_id"),
        (_line(custom_id=3), None, "invalid_type", "custom_id"),
        (_line(custom_id="x" * 513), None, "string_above_max_length", "custom_id"),
        (_line(method="GET"), "one", "invalid_value", "method"),
        (_line(url="/v1/embeddings"), "one", "invalid_value", "url"),
        (_line(odd=1), "one", "unknown_parameter", "odd"),
        (_line(body="absent"), "one", "invalid_value", "body"),
        (_line(body=[]), "one", "invalid_value", "body"),
        (_line(body={}), "one", "missing_required_parameter", "body.prompt"),
        (_line(body={"prompt": " "}), "one", "invalid_value", "body.prompt"),
        (_line(body={"prompt": "x", "n": 11}), "one", "invalid_value", "body.n"),
        (_line(body={"prompt": "x", "stream": True}), "one", "invalid_value", "body.stream"),
        (
            _line(body={"prompt": "x", "response_format": "b64_json"}),
            "one",
            "invalid_value",
            "body.response_format",
        ),
        (_line(body={"prompt": "x", "model": "dall-e"}), "one", "model_not_found", "body.model"),
        (_line(body={"prompt": "x", "size": "1x1"}), "one", "invalid_value", "body.size"),
        (
            _line(body={"prompt": "x", "diversity": {"memory": {"name": "A b"}}}),
            "one",
            "invalid_id",
            "body.diversity.memory.name",
        ),
    ],
)
def test_a_bad_line(forms: WireForms, line: object, custom_id: str | None, code: str, param: str | None):
    """It is told by its number, its custom_id where it has one, and the member at fault."""
    found = _read(forms, line)
    assert found.request is None
    assert (found.custom_id, found.fault.code, found.fault.param, found.fault.line) == (
        custom_id,
        code,
        param,
        7,
    )
    assert found.fault.message


def test_a_slip_in_a_line_is_told_what_was_meant(forms: WireForms):
    """In the line as in its body."""
    for line, meant in ((_line(methud="POST"), "method"), (_line(body={"prompt": "x", "sede": 1}), "seed")):
        assert f"unknown member; did you mean {meant!r}?" in _read(forms, line).fault.message


def test_a_line_that_is_too_long(forms: WireForms):
    """Nothing of it was read."""
    found = forms.read(BATCH, RawLine(7, None))
    assert (found.custom_id, found.fault.code, found.fault.line) == (None, "request_too_large", 7)


@given(
    st.binary(max_size=80)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["custom_id", "method", "url", "body", "prompt", "n", "diversity"]),
                inner,
                max_size=4,
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_line_is_too_odd(forms: WireForms, data: bytes):
    """Whatever stands in it, it has a request or a fault, and reading it again gives the same."""
    found = forms.read(BATCH, RawLine(7, data))
    assert (found.request is None) != (found.fault is None)
    assert forms.read(BATCH, RawLine(7, data)) == found
    json.loads(forms.refuse(found, found.fault or LineFault("x", "y"), JOB_ID).data)


def _record(forms: WireForms, **ends: object) -> JobRecord:
    request = _read(forms, _line()).request
    job = Job(BATCH.tenant_id, JOB_ID, JobKind.GENERATE, request, 10**12 + 5000, BATCH.expires_at_ms)
    return JobRecord(job, **{"state": JobState.FAILED, **ends})


def test_an_answer(forms: WireForms):
    """It is that of the endpoint, with URLs that work until the time given, and the same each time."""
    image = GeneratedImage(image_id(JOB_ID, 0), 5, "key", 10, 0, None, 0.0)
    result = GenerationResult((image,), LatentSpace("toy"), MemoryName("default"), 4)
    record = _record(forms, state=JobState.SUCCEEDED, result=result)
    line = _read(forms, _line())
    written = forms.answer(BATCH, line, record, expires_at_s=2 * 10**9)
    assert written == forms.answer(BATCH, line, record, expires_at_s=2 * 10**9)
    assert (written.is_error, written.data[-1:]) == (False, b"\n")
    said = json.loads(written.data)
    assert list(said) == ["id", "custom_id", "response", "error"]
    assert (said["custom_id"], said["error"], said["response"]["status_code"]) == ("one", None, 200)
    assert said["id"].startswith("batch_req_")
    body = said["response"]["body"]
    assert (body["created"], body["memory_version"]) == (10**9 + 5, 4)
    url = urlsplit(body["data"][0]["url"])
    assert (url.scheme, url.netloc, url.path) == ("http", "here", f"/v1/images/{image.image_id}")
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    assert query["expires"] == str(2 * 10**9)
    signed = (BATCH.tenant_id, image.image_id, 2 * 10**9)
    forms.deps.signer.verify(*signed, signature=query["signature"], now_s=2 * 10**9 - 1)
    with pytest.raises(Unauthenticated):
        forms.deps.signer.verify(*signed, signature=query["signature"], now_s=2 * 10**9)


@pytest.mark.parametrize(
    ("ends", "status", "code"),
    [
        (
            {"failure": Failure("memory_version_gone", "no longer", "diversity.memory.version")},
            410,
            "memory_version_gone",
        ),
        ({"failure": Failure("out_of_memory", "too large")}, 500, "out_of_memory"),
        ({"state": JobState.CANCELLED, "failure": Failure("cancelled", "it was")}, 409, "cancelled"),
        ({"state": JobState.EXPIRED}, 504, "timeout"),
    ],
)
def test_an_answer_that_is_an_error(forms: WireForms, ends: dict[str, object], status: int, code: str):
    """It has the status and the body that the endpoint would have answered with."""
    written = forms.answer(BATCH, _read(forms, _line()), _record(forms, **ends), expires_at_s=1)
    assert written.is_error
    said = json.loads(written.data)
    response = said["response"]
    assert (said["error"], response["status_code"], response["body"]["status"]) == (None, status, status)
    assert response["body"]["error"]["code"] == code
    assert response["body"]["instance"] == f"urn:sparke:request:{response['request_id']}"
