"""The whole service with its images and files on S3, and what it says where that is not as it should be."""

import base64
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from patience import PATIENCE_S, wait_until

PICTURES = runpy.run_path(str(Path(__file__).parents[1] / "app" / "http" / "test_fuzz.py"), run_name="cases")
BIG_BYTES = 200 * 2**20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def _ok(answer):
    assert answer.status_code < 300, answer.text
    return answer.json()


def _variables(s3_server, bucket, **changed):
    return {**s3_server.env(), "SPARKE_IMAGE_URL": f"s3://{bucket}/sparke/here", **changed}


@pytest.fixture
def there(start, s3_server, tmp_path):
    """A running service, its bucket, and a client of it."""
    bucket = s3_server.make_bucket()
    quick = {"SPARKE_SWEEP_INTERVAL_S": "0.5", "SPARKE_IMAGE_URL_TTL_S": "60", "SPARKE_LOG_LEVEL": "warning"}
    service = start(tmp_path / "data", **_variables(s3_server, bucket, **quick))
    with httpx.Client(base_url=service.url, timeout=120) as client:
        yield service, bucket, client


def _keys(s3_server, bucket, place):
    return [key for key in s3_server.keys(bucket) if key.startswith(f"sparke/here/{place}/")]


def test_everything_that_is_kept_lies_there(there, s3_server, tmp_path):
    """Images, an edit with its picture, a batch with its files; what is forgotten or erased goes, and no folder is used."""
    _, bucket, client = there
    asked = {"prompt": "a star", "n": 2, "response_format": "url"}
    made = _ok(client.post("/v1/images/generations", json=asked))
    images = [httpx.get(one["url"], timeout=PATIENCE_S) for one in made["data"]]
    assert [answer.status_code for answer in images] == [200, 200]
    assert len(_keys(s3_server, bucket, "images")) == 2
    edit = client.post(
        "/v1/images/edits", files={"image": ("a.png", PICTURES["PICTURE"])}, data={"prompt": "a star"}
    )
    assert base64.b64decode(_ok(edit)["data"][0]["b64_json"])[:4] == b"\x89PNG"
    assert _batch(client) == ["0", "1", "2"]
    assert _keys(s3_server, bucket, "files")
    _ok(client.post("/v1/memories/toy.default/forget", json={"all": True}))
    wait_until(lambda: not _keys(s3_server, bucket, "images"), "images of what was forgotten are there")
    for file in _ok(client.get("/v1/files"))["data"]:
        _ok(client.delete(f"/v1/files/{file['id']}"))
    assert s3_server.keys(bucket) == []
    assert {path.name for path in (tmp_path / "data").iterdir()} & {"images", "files"} == set()


def _batch(client):
    """The custom ids that a batch of three lines answers."""
    line = {"method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a star"}}
    lines = "\n".join(json.dumps({**line, "custom_id": str(number)}) for number in range(3)).encode()
    file = _ok(client.post("/v1/files", files={"file": ("a.jsonl", lines), "purpose": (None, "batch")}))
    body = {"input_file_id": file["id"], "endpoint": "/v1/images/generations", "completion_window": "24h"}
    batch = _ok(client.post("/v1/batches", json=body))
    wait_until(
        lambda: _ok(client.get(f"/v1/batches/{batch['id']}"))["status"] == "completed", "no end of the batch"
    )
    output = _ok(client.get(f"/v1/batches/{batch['id']}"))["output_file_id"]
    answers = client.get(f"/v1/files/{output}/content").text.splitlines()
    return sorted(json.loads(answer)["custom_id"] for answer in answers)


def test_two_hundred_megabytes_go_there_and_back(there):
    """An upload in parts, read again by somebody who is in no hurry; the bytes are the same."""
    _, _, client = there
    line = json.dumps({"custom_id": "x" * 1000}).encode() + b"\n"
    data = line * ((BIG_BYTES - 1000) // len(line))
    form = {"file": ("big.jsonl", io.BytesIO(data)), "purpose": (None, "batch")}
    file = _ok(client.post("/v1/files", files=form))
    assert file["bytes"] == len(data)
    with client.stream("GET", f"/v1/files/{file['id']}/content") as answer:
        got = hash(b"".join(answer.iter_bytes()))
    assert got == hash(data)


def test_an_outage_is_waited_for_and_nothing_is_lost(there, s3_server):
    """The store stops amid work and comes back: what was accepted is done, what is read meanwhile is 503 for now."""
    _, _, client = there
    asked = {"prompt": "a star", "response_format": "url"}
    url = _ok(client.post("/v1/images/generations", json=asked))["data"][0]["url"]
    s3_server.door.shut()
    try:
        jobs = [_ok(client.post("/v1/jobs", json={"prompt": "a ring"}))["id"] for _ in range(3)]
        refused = httpx.get(url, timeout=60)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        form = {"file": ("a.jsonl", b"{}\n"), "purpose": (None, "batch")}
        assert client.post("/v1/files", files=form).status_code == 503
    finally:
        s3_server.door.open()
    assert httpx.get(url, timeout=PATIENCE_S).status_code == 200
    for job in jobs:
        wait_until(lambda at=f"/v1/jobs/{job}": _ok(client.get(at))["status"] == "succeeded", "not done")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
        ({"SPARKE_IMAGE_URL": "s3://nobodys/sparke"}, "NoSuchBucket"),
        ({"AWS_ALLOW_HTTP": "false"}, "AWS_ALLOW_HTTP=true"),
    ],
)
def test_a_store_that_refuses_is_told_at_the_start(s3_server, tmp_path, make_env_of, changed, message):
    """By `sparke serve`, which does not start, and by `sparke doctor`: in a line, with what to correct."""
    variables = _variables(s3_server, s3_server.make_bucket(), **changed)
    env = make_env_of(tmp_path, SPARKE_DATA_DIR=str(tmp_path / "data"), **variables)
    said = _run(["serve", "--port", "0"], env)
    assert said.returncode == 1, said.stderr
    assert message in said.stderr
    assert "docs/s3.md" in said.stderr
    said = _run(["doctor"], env)
    assert said.returncode == 1
    assert message in said.stdout
    assert "Debug" not in said.stdout


def _run(command, env):
    line = [sys.executable, "-P", "-m", "app.cli", *command]
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=200, check=False)
