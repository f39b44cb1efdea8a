"""No line of any process holds a prompt, a key, or the signature of a URL, whatever is asked and whatever goes wrong."""

import io
import json
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from tests.e2e.telemetry_watch import DEMO, TOY, Watched, watched_service

WORDS = ("heron", "lavender", "zeppelin")  # of prompts, and nowhere else
PROMPT = "a lavender heron on a zeppelin"
LEVELS = "app=debug,uvicorn=debug,asyncio=debug,httpx=debug,httpcore=debug,diffusers=info,transformers=info,PIL=info"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A service that tells as much as it can."""
    with watched_service(
        tmp_path_factory.mktemp("talkative"),
        catalogue=TOY + DEMO,
        SPARKE_LOG_FORMAT="json",
        SPARKE_LOG_LEVEL="debug",
        SPARKE_LOG_LEVELS=LEVELS,
    ) as watched:
        yield watched


def png() -> bytes:
    """A picture."""
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(out, "PNG")
    return out.getvalue()


def send_mixed_traffic(client: httpx.Client) -> dict[str, int]:
    """What clients ask for, rightly and wrongly, with the statuses that came back; every text of theirs has a word of WORDS."""
    images = "/v1/images/generations"
    body = {"model": "toy", "prompt": PROMPT, "negative_prompt": "no lavender"}
    made = client.post(images, json={**body, "response_format": "url"})
    url = made.json()["data"][0]["url"]
    signed = url.removeprefix(f"{urlsplit(url).scheme}://{urlsplit(url).netloc}")
    memory = client.get("/v1/memories").json()["data"][0]["id"]
    lines = json.dumps({"custom_id": "heron", "method": "POST", "url": images, "body": body})
    file = client.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": ("heron.jsonl", lines + "\n{heron\n")}
    )
    answers = {
        "made": made,
        "shown": client.get(signed),
        "thumbnail": client.get(f"{signed}&max_px=64"),
        "forged": client.get(signed[:-4] + "abcd"),
        "long": client.post(images, json={"model": "sparke-demo", "prompt": f"{PROMPT} " * 40, "steps": 1}),
        "wrong_type": client.post(images, json={**body, "n": PROMPT}),
        "wrong_member": client.post(images, json={**body, "lavender": PROMPT}),
        "wrong_size": client.post(images, json={**body, "size": "heron"}),
        "no_json": client.post(images, content=f'{{"prompt": "{PROMPT}", '.encode()),
        "no_text": client.post(images, content=b'{"prompt": "\xff heron"}'),
        "no_route": client.get("/v1/heron/lavender", params={"prompt": PROMPT}),
        "no_method": client.put("/v1/models", params={"prompt": PROMPT}),
        "no_memory": client.get("/v1/memories/heron"),
        "searched": client.post(f"/v1/memories/{memory}/search", json={"prompt": PROMPT}),
        "search_wrong": client.post(
            f"/v1/memories/{memory}/search", json={"prompt": PROMPT, "limit": "heron"}
        ),
        "edited": client.post(
            "/v1/images/edits", data={"prompt": PROMPT, "model": "toy"}, files={"image": png()}
        ),
        "edit_wrong": client.post(
            "/v1/images/edits", data={"prompt": PROMPT, "n": "heron"}, files={"image": b"heron"}
        ),
        "job": client.post("/v1/jobs", json={**body, "metadata": {"title": PROMPT}}),
        "batch": client.post(
            "/v1/batches",
            json={"input_file_id": file.json()["id"], "endpoint": images, "completion_window": "24h"},
        ),
        "key": client.get("/v1/models", headers={"authorization": "Bearer sk-sparke-lavender-heron"}),
        "head": client.get("/v1/models", headers={"x-note": "heron-" * 5000}),
    }
    with client.stream("POST", images, json={**body, "stream": True, "partial_images": 1}) as streamed:
        answers["streamed"] = streamed
        streamed.read()
    wait_for_batch(client, answers["batch"].json()["id"])
    return {name: answer.status_code for name, answer in answers.items()}


def wait_for_batch(client: httpx.Client, batch_id: str) -> None:
    """Returns once a batch has ended."""
    for _ in range(1000):
        if client.get(f"/v1/batches/{batch_id}").json()["status"] in ("completed", "failed"):
            return
        time.sleep(0.1)
    raise AssertionError("the batch does not end")


def test_mixed_traffic_leaves_nothing_in_the_logs(service: Watched):
    """Three processes at their most talkative, and every kind of answer; neither is it in their spans."""
    with httpx.Client(base_url=service.url, timeout=60) as client:
        statuses = send_mixed_traffic(client)
    assert {name for name, status in statuses.items() if status < 300} >= {
        *("made", "shown", "thumbnail", "long", "searched", "edited", "job", "batch", "streamed")
    }, statuses
    assert len({status for status in statuses.values() if status >= 400}) >= 5, statuses
    ended = service.wait_for_line("job_ended", model="sparke-demo")
    assert ended["prompt"] == "[redacted]"
    text = service.text()
    lines = service.lines()
    assert len(lines) > 60
    assert {line["level"] for line in lines} >= {"debug", "info", "warning"}
    found = [line for line in text.splitlines() if any(word in line.lower() for word in WORDS)]
    assert found == []
    assert "sk-sparke-" not in text.replace("sk-sparke-[redacted]", "").replace("sk-sparke-...", "")
    assert "signature=" not in text.replace("signature=[redacted]", "")
    assert not [
        body for body in service.collector.raw if any(word.encode() in body.lower() for word in WORDS)
    ]
    assert not [body for body in service.collector.raw if b"signature" in body]


def test_what_a_tokenizer_cuts_is_withheld(service: Watched):
    """A prompt that is too long makes the pipeline say what it leaves out; the log has that it said something, and where."""
    with httpx.Client(base_url=service.url, timeout=60) as client:
        body = {"model": "sparke-demo", "prompt": f"{PROMPT} " * 60, "steps": 1}
        assert client.post("/v1/images/generations", json=body).status_code == 200
    said = [line for line in service.lines() if line["event"].startswith("[withheld")]
    assert said
    assert {line["logger"].partition(".")[0] for line in said} <= {"diffusers", "transformers"}
    assert all(":" in line["where"] and line["run_id"] for line in said)


def test_every_line_is_json(service: Watched):
    """Libraries' lines too: nothing writes around the logs once they are set up."""
    plain = [line for line in service.text().splitlines() if line and not line.startswith("{")]
    assert [line for line in plain if not line.startswith("Loading ")] == []


def test_every_line_of_a_request_has_its_ids(service: Watched):
    """And each of its job, with the request's id."""
    with httpx.Client(base_url=service.url, timeout=60) as client:
        body = {"model": "toy", "prompt": PROMPT}
        client.post("/v1/images/generations", json=body, headers={"x-request-id": "req-whole"})
    job_id = service.wait_for_line("job_ended", request_id="req-whole")["job_id"]
    lines = [line for line in service.lines() if line.get("job_id") == job_id]
    assert lines
    assert {line["request_id"] for line in lines} == {"req-whole"}
    assert {line["tenant_id"] for line in lines} == {"default"}
    assert {name for line in lines for name in line} >= {
        "waited_s",
        "ran_s",
        "model",
        "num_images",
        "push",
        "run_id",
    }
