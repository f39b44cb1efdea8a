"""The jobs API, over a real server, a real Redis and a real worker."""

import asyncio
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from httpx import Client
from patience import PATIENCE_S

from app.domain.ids import TenantId
from app.redis.connection import connect
from app.tenants.keys import KeyStore

pytestmark = pytest.mark.usefixtures("worker")

BODY = {"prompt": "a star", "model": "toy", "seed": 7}
SLOW = {"prompt": "a star", "model": "toy", "steps": 1_000_000}


def _wait(http: Client, job_id: str) -> dict:
    until_s = time.monotonic() + PATIENCE_S
    while True:
        job = http.get(f"/v1/jobs/{job_id}").json()
        if job["finished_at"] is not None:
            return job
        assert time.monotonic() < until_s, job
        time.sleep(0.05)


def _create(http: Client, body: dict | None = None, **headers: str) -> dict:
    answer = http.post("/v1/jobs", json=body or BODY, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()


def _events(http: Client, job_id: str, **headers: str) -> list[dict]:
    """Every event until the stream ends, with its SSE id and name."""
    found, current = [], {}
    with http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name in {"id", "event"}:
                current[name] = value
            elif name == "data":
                current |= json.loads(value)
            elif not line:
                found.append(current)
                current = {}
    return found


def test_a_job_is_accepted_and_made(http):
    """202 with where to look; then the images by URL, which work, with the defaults filled in."""
    answer = http.post(
        "/v1/jobs", json={**BODY, "n": 2, "metadata": {"campaign": "spring"}, "deadline_s": 60}
    )
    job = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{job['id']}")
    assert job["deadline_at"] == job["created_at"] + 60
    done = _wait(http, job["id"])
    assert (done["status"], done["error"], done["metadata"]) == ("succeeded", None, {"campaign": "spring"})
    assert (done["request"]["seed"], done["request"]["steps"], done["request"]["size"]) == (7, 3, "64x64")
    assert [image["seed"] for image in done["result"]["data"]] == [7, 8]
    assert all("b64_json" not in image for image in done["result"]["data"])
    assert httpx.get(done["result"]["data"][1]["url"], timeout=PATIENCE_S).content.startswith(b"\x89PNG")


def test_events_tell_the_whole_story_and_can_be_resumed(http):
    """From acceptance to end, in order; with any event's id, exactly what came after it; after the end, 204."""
    job = _create(http, {**BODY, "steps": 40})
    whole = _events(http, job["id"])
    kinds = [event["type"] for event in whole]
    assert kinds[:2] == ["queued", "running"]
    assert set(kinds[2:-1]) <= {"progress"}
    assert [event["event"] for event in whole] == kinds
    assert (whole[-1]["type"], whole[-1]["job"]["status"]) == ("succeeded", "succeeded")
    assert whole[-1]["job"] == http.get(f"/v1/jobs/{job['id']}").json() | {
        "result": whole[-1]["job"]["result"]  # its URLs are signed anew each time
    }
    for index, event in enumerate(whole[:-1]):
        rest = _events(http, job["id"], **{"last-event-id": event["id"]})
        assert [later["id"] for later in rest] == [later["id"] for later in whole[index + 1 :]]
    over = http.get(f"/v1/jobs/{job['id']}/events", headers={"last-event-id": whole[-1]["id"]})
    assert (over.status_code, over.content) == (204, b"")


def test_a_follower_on_another_replica_misses_nothing(http, settings, serve_api):
    """A connection breaks in the middle; at another API process the rest comes, and nothing twice."""
    job = _create(http, {**BODY, "steps": 400_000})
    first = []
    with http.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
        for line in answer.iter_lines():
            if line.startswith("id: "):
                first.append(line.removeprefix("id: "))
            if len(first) == 3:
                break
    http.post(f"/v1/jobs/{job['id']}/cancel")
    with Client(base_url=serve_api(settings), timeout=60) as other:
        rest = [event["id"] for event in _events(other, job["id"], **{"last-event-id": first[-1]})]
        whole = [event["id"] for event in _events(other, job["id"])]
    assert first + rest == whole


def test_a_running_job_is_cancelled_within_a_step(http):
    """It ends so, nothing of it is shown, and a second cancel changes nothing."""
    job = _create(http, SLOW)
    while http.get(f"/v1/jobs/{job['id']}").json()["status"] != "running":
        time.sleep(0.05)
    asked = http.post(f"/v1/jobs/{job['id']}/cancel").json()
    assert asked["status"] == "cancelled" or asked["cancel_requested_at"] is not None
    done = _wait(http, job["id"])
    assert (done["status"], done["result"], done["error"]["code"]) == ("cancelled", None, "cancelled")
    again = http.post(f"/v1/jobs/{job['id']}/cancel")
    assert (again.status_code, again.json()) == (200, done)


def test_a_finished_job_cannot_be_cancelled(http):
    """It stays succeeded."""
    job = _wait(http, _create(http)["id"])
    assert http.post(f"/v1/jobs/{job['id']}/cancel").json()["status"] == "succeeded"


def test_one_key_from_sixteen_clients_is_one_job_with_one_answer(http, client):
    """Sixteen at once over the images API: the same images in all answers, and one more job in the list."""
    before = {job["id"] for job in http.get("/v1/jobs", params={"limit": 100}).json()["data"]}
    body = {"prompt": "a heart", "model": "toy", "n": 2}
    with ThreadPoolExecutor(16) as pool:
        asked = [
            pool.submit(
                http.post, "/v1/images/generations", json=body, headers={"idempotency-key": "sixteen"}
            )
            for _ in range(16)
        ]
        answers = [one.result() for one in asked]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    after = {job["id"] for job in http.get("/v1/jobs", params={"limit": 100}).json()["data"]}
    assert len(after - before) == 1
    official = client.images.generate(
        prompt="a heart", model="toy", n=2, extra_headers={"idempotency-key": "sixteen"}
    )
    assert [image.b64_json for image in official.data] == [
        image["b64_json"] for image in answers[0].json()["data"]
    ]


def test_a_key_with_another_request_is_refused(http):
    """Another body, or another route, under a key that was used: 422, and the first job goes on."""
    headers = {"idempotency-key": "twice"}
    job = _create(http, BODY, **headers)
    assert _create(http, BODY, **headers)["id"] == job["id"]
    other = http.post("/v1/jobs", json={**BODY, "seed": 8}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")
    elsewhere = http.post("/v1/images/generations", json=BODY, headers=headers)
    assert elsewhere.status_code == 422
    assert _wait(http, job["id"])["status"] == "succeeded"


@pytest.mark.parametrize("key", ["", "a" * 256, "caf\u00e9"])
def test_a_malformed_key_is_refused(http, key):
    """Empty, too long, or not ASCII: 400, with the header named."""
    answer = http.post("/v1/jobs", json=BODY, headers=[(b"idempotency-key", key.encode())])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": 86_401}, "deadline_s"),
        ({"response_format": "b64_json"}, "response_format"),
        ({"stream": True}, "stream"),
        ({"metadata": {"": "x"}}, "metadata"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"metadata": {"x": "y" * 513}}, "metadata.x"),
        ({"prompt": " "}, "prompt"),
    ],
)
def test_a_bad_job_is_refused(http, body, param):
    """400, with the member at fault; nothing is queued."""
    answer = http.post("/v1/jobs", json={**BODY, **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)


@pytest.mark.parametrize("path", ["", "/cancel", "/events"])
@pytest.mark.parametrize("job_id", ["nonsense", "job_0123456789abcdef0123456789ab"])
def test_unknown_jobs_are_not_found(http, path, job_id):
    """Whether the id could be one or not."""
    method = "POST" if path == "/cancel" else "GET"
    assert http.request(method, f"/v1/jobs/{job_id}{path}").status_code == 404


@pytest.mark.parametrize(
    ("path", "headers", "param"),
    [
        ("?after=nonsense", {}, "after"),
        ("?limit=0", {}, "limit"),
        ("?limit=101", {}, "limit"),
        ("?status=done", {}, "status"),
    ],
)
def test_a_bad_query_is_refused(http, path, headers, param):
    """400, with the parameter at fault."""
    answer = http.get(f"/v1/jobs{path}", headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_bad_event_id_is_refused(http):
    """400 before the stream begins."""
    job = _create(http)
    answer = http.get(f"/v1/jobs/{job['id']}/events", headers={"last-event-id": "yesterday"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")


def test_the_list_has_pages_and_filters(http):
    """The newest first, one page after another."""
    made = [_wait(http, _create(http)["id"])["id"] for _ in range(3)]
    page = http.get("/v1/jobs", params={"limit": 2, "status": "succeeded"}).json()
    assert [job["id"] for job in page["data"]] == made[:0:-1]
    assert (page["has_more"], page["next_after"], page["last_id"]) == (True, made[1], made[1])
    older = http.get("/v1/jobs", params={"limit": 1, "after": page["next_after"]}).json()
    assert older["data"][0]["id"] == made[0]
    assert http.get("/v1/jobs", params={"model": "unserved", "status": "running"}).json()["data"] == []


def test_a_job_that_nobody_serves_waits_and_can_be_cancelled(http):
    """A job is not given up for want of a worker, unlike a request that somebody waits for."""
    job = _create(http, {"prompt": "a star", "model": "unserved"})
    time.sleep(1.0)
    assert http.get(f"/v1/jobs/{job['id']}").json()["status"] == "queued"
    assert http.post(f"/v1/jobs/{job['id']}/cancel").json()["status"] == "cancelled"
    assert [event["type"] for event in _events(http, job["id"])] == ["queued", "cancelled"]


@pytest.mark.parametrize("cancels", [True, False])
def test_a_client_that_leaves_cancels_only_if_it_said_so(http, api_url, cancels):
    """Its connection breaks once its job runs: the job is cancelled, or goes on."""
    body = json.dumps({**SLOW, "prompt": f"a star {time.time_ns()}", "cancel_on_disconnect": cancels})
    host, _, port = api_url.removeprefix("http://").partition(":")
    head = f"POST /v1/images/generations HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        job_id = _running(http, json.loads(body)["prompt"])
    try:
        if not cancels:
            time.sleep(1.0)
            assert http.get(f"/v1/jobs/{job_id}").json()["cancel_requested_at"] is None
            http.post(f"/v1/jobs/{job_id}/cancel")
        assert _wait(http, job_id)["status"] == "cancelled"
    finally:
        http.post(f"/v1/jobs/{job_id}/cancel")  # or it keeps the worker from every other test


def _running(http: Client, prompt: str) -> str:
    """The id of the job with this prompt, once it runs."""
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        for job in http.get("/v1/jobs", params={"status": "running"}).json()["data"]:
            if job["request"]["prompt"] == prompt:
                return job["id"]
        time.sleep(0.05)
    pytest.fail("the job does not run")


def test_jobs_of_one_tenant_are_not_anothers(settings, serve_api):
    """Neither shown, listed, followed nor cancelled; with the same idempotency key it is a job of its own."""
    own = settings.model_copy(update={"redis_url": f"{settings.redis_url}?db=5"})
    url = serve_api(own)
    headers = [{"authorization": f"Bearer {key}"} for key in asyncio.run(_keys_of(own, "acme", "bolt"))]
    body = {"prompt": "a star", "model": "unserved"}
    with Client(base_url=url, headers=headers[0]) as mine, Client(base_url=url, headers=headers[1]) as other:
        job = _create(mine, body, **{"idempotency-key": "shared"})
        for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/events")):
            assert other.request(method, f"/v1/jobs/{job['id']}{path}").status_code == 404
        assert other.get("/v1/jobs").json()["data"] == []
        assert _create(other, body, **{"idempotency-key": "shared"})["id"] != job["id"]
        assert mine.get(f"/v1/jobs/{job['id']}").json()["status"] == "queued"


async def _keys_of(settings, *tenants) -> list[str]:
    redis = connect(settings.redis_url)
    keys = [await KeyStore(redis).create(TenantId(tenant)) for tenant in tenants]
    await redis.aclose()
    return keys
