"""docs/limits.md is true: each limit has the request that trips it, sent to a real server, and the answer that it names."""

import asyncio
import gzip
import io
import json
import re
import runpy
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from patience import PATIENCE_S
from PIL import Image

from app.domain.ids import LatentSpace, MemoryName, TenantId
from app.domain.scope import Scope
from app.memory.keys import MemoryKey, index_key, index_member, log_key
from app.redis.connection import connect
from app.settings import Settings
from app.tenants.keys import KeyStore, KeyWish

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "limits.md").read_text(encoding="utf-8")
ROW = re.compile(r"\| ([^|]+) \| ([^|]+) \| ([^|]+) \| (?:(\d{3}) )?`(\w+)` \|")
ARCHIVES = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("archive_cases.py"))))
JOB = {"model": "unserved", "prompt": "x"}
OCTETS = "application/octet-stream"
NOBODY = "http://127.0.0.1:9/"

ROWS = {found[1]: found for found in ROW.finditer(DOCUMENT)}
TRIPS: dict[str, Callable[["Scene"], httpx.Response]] = {}


class Scene:
    """Makes servers with settings of a test's own over a database that holds nothing but a key for everything."""

    def __init__(self, serve_api: Callable[[Settings], str], settings: Settings) -> None:
        self._serve_api, self._settings = serve_api, settings
        self.key = asyncio.run(self._issue())

    def http(self, **update: object) -> httpx.Client:
        """A client of a server with these settings."""
        url = self._serve_api(self._settings.model_copy(update={"webhooks_allow_private": True, **update}))
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_S)

    async def _issue(self) -> str:
        redis = connect(self._settings.redis_url or "")
        try:
            wish = KeyWish(scopes=tuple(Scope))
            return (await KeyStore(redis).issue(TenantId("acme"), wish)).key
        finally:
            await redis.aclose()

    def remember(self, num_entries: int) -> None:
        """Gives the tenant a memory."""

        async def write() -> None:
            redis = connect(self._settings.redis_url or "")
            memory = MemoryKey(TenantId("acme"), LatentSpace("toy"), MemoryName("default"))
            try:
                await redis.sadd(index_key(memory.tenant_id), index_member(memory))
                for number in range(1, num_entries + 1):
                    await redis.xadd(log_key(memory), {"e": b"entry"}, id=f"{number}-0")
            finally:
                await redis.aclose()

        asyncio.run(write())


def _trips(name: str) -> Callable[[Callable[[Scene], httpx.Response]], Callable[[Scene], httpx.Response]]:
    def keep(trip: Callable[[Scene], httpx.Response]) -> Callable[[Scene], httpx.Response]:
        TRIPS[name] = trip
        return trip

    return keep


def _upload(http: httpx.Client, content: bytes = b"{}", **fields: str) -> httpx.Response:
    form = {"file": ("a.jsonl", content), "purpose": (None, "batch")}
    return http.post("/v1/files", files={**form, **{name: (None, value) for name, value in fields.items()}})


def _batch(http: httpx.Client, content: bytes = b"{}") -> httpx.Response:
    file_id = _upload(http, content).json()["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/images/generations", "completion_window": "24h"}
    return http.post("/v1/batches", json=body)


def _picture(side_px: int) -> dict[str, tuple[str, bytes]]:
    file = io.BytesIO()
    Image.new("RGB", (side_px, side_px)).save(file, format="PNG")
    return {"image": ("a.png", file.getvalue())}


@contextmanager
def _half_sent(http: httpx.Client) -> Iterator[None]:
    """An upload that is on its way for as long as the context lasts."""
    go = threading.Event()

    def body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{'
        go.wait(PATIENCE_S)
        yield b"}\r\n--x--\r\n"

    headers = {**http.headers, "content-type": "multipart/form-data; boundary=x"}
    url = http.base_url.join("/v1/files")
    thread = threading.Thread(
        target=lambda: httpx.post(url, content=body(), headers=headers, timeout=PATIENCE_S)
    )
    thread.start()
    until_s = time.monotonic() + PATIENCE_S
    while "sparke_file_uploads_in_flight 1.0" not in http.get("/metrics").text:
        assert time.monotonic() < until_s, "the upload has not begun"
        time.sleep(0.02)
    try:
        yield
    finally:
        go.set()
        thread.join()


@_trips("requests a minute")
def _(scene: Scene) -> httpx.Response:
    with scene.http(requests_per_minute=2) as http:
        assert [http.get("/v1/models").status_code for _ in range(2)] == [200, 200]
        return http.get("/v1/models")


@_trips("images a day")
def _(scene: Scene) -> httpx.Response:
    with scene.http(images_per_day=3) as http:
        assert http.post("/v1/jobs", json={**JOB, "n": 2}).status_code == 202
        return http.post("/v1/jobs", json={**JOB, "n": 2})


@_trips("waiting jobs")
def _(scene: Scene) -> httpx.Response:
    with scene.http(max_waiting_jobs_per_tenant=1) as http:
        assert http.post("/v1/jobs", json=JOB).status_code == 202
        return http.post("/v1/jobs", json=JOB)


@_trips("memory entries")
def _(scene: Scene) -> httpx.Response:
    scene.remember(4)
    with scene.http(max_memory_entries=5) as http:
        assert http.post("/v1/jobs", json=JOB).status_code == 202
        reading = {"diversity": {"memory": {"write": False}}}
        assert http.post("/v1/jobs", json={**JOB, "n": 2, **reading}).status_code == 202
        return http.post("/v1/jobs", json={**JOB, "n": 2})


def _import(http: httpx.Client, archive: bytes, **params: str) -> httpx.Response:
    headers = {"content-type": "application/octet-stream"}
    return http.post("/v1/memories/import", content=archive, params=params, headers=headers)


@_trips("memory entries, of an archive")
def _(scene: Scene) -> httpx.Response:
    scene.remember(2)
    with scene.http(max_memory_entries=5) as http:
        assert _import(http, ARCHIVES.make_archive("fits", (1, 2, 3))).status_code == 200
        return _import(http, ARCHIVES.make_archive("more", (1,)))


@_trips("memory entries, of a fork")
def _(scene: Scene) -> httpx.Response:
    with scene.http(max_memory_entries=5) as http:
        assert _import(http, ARCHIVES.make_archive("default", (1, 2))).status_code == 200
        assert http.post("/v1/memories/toy.default/fork", json={"name": "fits"}).status_code == 201
        return http.post("/v1/memories/toy.default/fork", json={"name": "more"})


@_trips("memories")
def _(scene: Scene) -> httpx.Response:
    with scene.http(max_memories_per_tenant=1) as http:
        assert http.post("/v1/memories", json={"name": "fits", "latent_space": "toy"}).status_code == 201
        return http.post("/v1/memories", json={"name": "more", "latent_space": "toy"})


@_trips("memories, of jobs")
def _(scene: Scene) -> httpx.Response:
    scene.remember(1)
    with scene.http(max_memories_per_tenant=1) as http:
        made = {"model": "toy", "prompt": "x"}
        unwritten = {"diversity": {"memory": {"name": "more", "write": False}}}
        assert http.post("/v1/jobs", json=made).status_code == 202
        assert http.post("/v1/jobs", json={**made, **unwritten}).status_code == 202
        return http.post("/v1/jobs", json={**made, "diversity": {"memory": {"name": "more"}}})


@_trips("memories, of archives")
def _(scene: Scene) -> httpx.Response:
    with scene.http(max_memories_per_tenant=1) as http:
        assert _import(http, ARCHIVES.make_archive("fits", (1,))).status_code == 200
        return _import(http, ARCHIVES.make_archive("more", (1,)))


@_trips("memories, of forks")
def _(scene: Scene) -> httpx.Response:
    scene.remember(1)
    with scene.http(max_memories_per_tenant=2) as http:
        assert http.post("/v1/memories/toy.default/fork", json={"name": "fits"}).status_code == 201
        return http.post("/v1/memories/toy.default/fork", json={"name": "more"})


@_trips("exports and imports at once")
def _(scene: Scene) -> httpx.Response:
    with (
        scene.http(max_transfers_per_tenant=1) as http,
        socket.create_connection((http.base_url.host, http.base_url.port)) as busy,
    ):
        head = f"Host: localhost\r\nAuthorization: Bearer {scene.key}\r\nContent-Type: application/octet-stream\r\n"
        head += "Expect: 100-continue\r\nContent-Length: 9\r\n\r\n"
        busy.sendall(f"POST /v1/memories/import HTTP/1.1\r\n{head}".encode())
        assert busy.recv(12) == b"HTTP/1.1 100"  # it has the place, and its body is waited for
        return _import(http, b"no archive")


@_trips("unfinished imports")
def _(scene: Scene) -> httpx.Response:
    with scene.http(max_imports_per_tenant=1) as http:
        assert _import(http, ARCHIVES.make_archive("cut")[:-1], import_id=f"imp_{1:028x}").status_code == 400
        return _import(http, ARCHIVES.make_archive("whole"))


@_trips("archive")
def _(scene: Scene) -> httpx.Response:
    archive = ARCHIVES.make_archive("large")
    with scene.http(max_import_bytes=len(archive) - 1) as http:
        return _import(http, archive)


@_trips("stored bytes, of jobs")
def _(scene: Scene) -> httpx.Response:
    with scene.http(max_stored_bytes=10) as http:
        assert http.post("/v1/jobs", json=JOB).status_code == 202
        assert _upload(http, b"x" * 10).status_code == 200
        return http.post("/v1/jobs", json=JOB)


@_trips("stored bytes, of files")
def _(scene: Scene) -> httpx.Response:
    with scene.http(max_stored_bytes=10) as http:
        assert _upload(http, b"x" * 4).status_code == 200
        return _upload(http, b"x" * 7)


@_trips("files")
def _(scene: Scene) -> httpx.Response:
    with scene.http(max_files_per_tenant=1) as http:
        assert _upload(http).status_code == 200
        return _upload(http)


@_trips("uploads at once")
def _(scene: Scene) -> httpx.Response:
    with scene.http(max_uploads_per_tenant=1) as http, _half_sent(http):
        return _upload(http)


@_trips("unfinished batches")
def _(scene: Scene) -> httpx.Response:
    line = {"custom_id": "1", "method": "POST", "url": "/v1/images/generations", "body": JOB}
    with scene.http(max_open_batches_per_tenant=1) as http:
        assert _batch(http, json.dumps(line).encode()).status_code == 200
        return _batch(http, json.dumps(line).encode())


@_trips("webhooks")
def _(scene: Scene) -> httpx.Response:
    with scene.http() as http:
        made = [http.post("/v1/webhooks", json={"url": NOBODY}).status_code for _ in range(10)]
        assert made == [201] * 10
        return http.post("/v1/webhooks", json={"url": NOBODY})


@_trips("unfinished jobs")
def _(scene: Scene) -> httpx.Response:
    with scene.http(max_open_jobs=1) as http:
        assert http.post("/v1/jobs", json=JOB).status_code == 202
        return http.post("/v1/jobs", json=JOB)


@_trips("a worker for the model")
def _(scene: Scene) -> httpx.Response:
    with scene.http(no_worker_grace_s=0.1) as http:
        return http.post("/v1/images/generations", json=JOB)


@_trips("streams of events at once")
def _(scene: Scene) -> httpx.Response:
    with scene.http(max_followers_per_tenant=1) as http:
        events = f"/v1/jobs/{http.post('/v1/jobs', json=JOB).json()['id']}/events"
        with http.stream("GET", events) as first:
            assert first.status_code == 200
            refused = http.get(events)
        until_s = time.monotonic() + PATIENCE_S
        while True:  # a place is free again once its stream has gone
            with http.stream("GET", events) as again:
                if again.status_code == 200:
                    return refused
            assert time.monotonic() < until_s, "the place is not free"


@_trips("line and headers")
def _(scene: Scene) -> httpx.Response:
    with scene.http() as http:
        assert http.get("/v1/models", headers={"x-large": "x" * 16_000}).status_code == 200
        assert http.get("/v1/models", params={"x": "x" * 33_000}).status_code == 431
        return http.get("/v1/models", headers={"x-large": "x" * 33_000})


def _raw(http: httpx.Client, sent: bytes) -> httpx.Response:
    """What a server answers to these bytes before it closes the connection."""
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=PATIENCE_S) as peer:
        peer.sendall(sent)
        received = b"".join(iter(lambda: peer.recv(65_536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    line, *headers = head.decode().split("\r\n")
    pairs = [(name, value.strip()) for name, _, value in (header.partition(":") for header in headers)]
    return httpx.Response(int(line.split()[1]), headers=pairs, content=body)


@_trips("time of a head")
def _(scene: Scene) -> httpx.Response:
    with scene.http(head_timeout_s=0.3) as http:
        assert _raw(http, b"").status_code == 408
        return _raw(http, b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx-slow: ")


@_trips("members of a query")
def _(scene: Scene) -> httpx.Response:
    with scene.http() as http:
        assert http.get("/livez?" + "&".join(f"m{number}" for number in range(100))).status_code == 200
        return http.get("/livez?" + "&".join(f"m{number}" for number in range(101)))


@_trips("coding of a body")
def _(scene: Scene) -> httpx.Response:
    with scene.http() as http:
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        content = gzip.compress(json.dumps(JOB).encode())
        for path, kind in (("/v1/files", "multipart/form-data; boundary=x"), ("/v1/memories/import", OCTETS)):
            refused = http.post(path, content=content, headers={**headers, "content-type": kind})
            assert refused.status_code == 415, refused.text
        return http.post("/v1/jobs", content=content, headers=headers)


@_trips("time of a body of JSON")
def _(scene: Scene) -> httpx.Response:
    def slowly() -> Iterator[bytes]:
        for _ in range(10):
            time.sleep(0.1)
            yield b" "

    with scene.http(body_timeout_s=0.5) as http:
        return http.post("/v1/jobs", content=slowly(), headers={"content-type": "application/json"})


@_trips("body")
def _(scene: Scene) -> httpx.Response:
    with scene.http(max_body_bytes=10_000) as http:
        return http.post("/v1/jobs", json={**JOB, "user": "x" * 10_000})


@_trips("depth of JSON")
def _(scene: Scene) -> httpx.Response:
    with scene.http() as http:
        content = '{"prompt": "x", "metadata": ' + "[" * 201 + "]" * 201 + "}"
        return http.post("/v1/jobs", content=content, headers={"content-type": "application/json"})


@_trips("file")
def _(scene: Scene) -> httpx.Response:
    with scene.http(max_file_bytes=100) as http:
        assert _upload(http, b"x" * 100).status_code == 200
        return _upload(http, b"x" * 101)


@_trips("picture")
def _(scene: Scene) -> httpx.Response:
    with scene.http(max_picture_bytes=100) as http:
        return http.post("/v1/images/edits", files=_picture(128), data={"prompt": "x"})


@_trips("pixels of a picture")
def _(scene: Scene) -> httpx.Response:
    with scene.http(max_picture_pixels=128 * 128 - 1) as http:
        return http.post("/v1/images/edits", files=_picture(128), data={"prompt": "x"})


@_trips("pictures of a reference")
def _(scene: Scene) -> httpx.Response:
    with scene.http(no_worker_grace_s=0) as http:
        sent = [("image[]", _picture(64)["image"]) for _ in range(17)]
        assert http.post("/v1/references", files=sent[1:], data={"name": "own"}).status_code == 503
        return http.post("/v1/references", files=sent, data={"name": "own"})


@_trips("time of an upload")
def _(scene: Scene) -> httpx.Response:
    def slowly() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(8):
            time.sleep(0.2)
            yield b"x"

    with scene.http(upload_timeout_s=0.5) as http:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        return http.post("/v1/files", content=slowly(), headers=headers)


@_trips("parts of a form")
def _(scene: Scene) -> httpx.Response:
    with scene.http() as http:
        return _upload(http, **{f"field{number}": "x" for number in range(31)})


@_trips("name of a key")
def _(scene: Scene) -> httpx.Response:
    with scene.http() as http:
        return http.post("/v1/admin/tenants/acme/keys", json={"name": "x" * 101})


@_trips("life of a key")
def _(scene: Scene) -> httpx.Response:
    with scene.http() as http:
        return http.post("/v1/admin/tenants/acme/keys", json={"expires_in_s": 10 * 365 * 86_400 + 1})


@_trips("grace of a key")
def _(scene: Scene) -> httpx.Response:
    with scene.http() as http:
        made = http.post("/v1/admin/tenants/acme/keys", json={}).json()
        return http.post(f"/v1/admin/keys/{made['id']}/rotate", json={"grace_s": 30 * 86_400 + 1})


@_trips("idempotency key")
def _(scene: Scene) -> httpx.Response:
    with scene.http() as http:
        assert http.post("/v1/jobs", json=JOB, headers={"idempotency-key": "x" * 255}).status_code == 202
        return http.post("/v1/jobs", json=JOB, headers={"idempotency-key": "x" * 256})


@_trips("page of a list")
def _(scene: Scene) -> httpx.Response:
    with scene.http() as http:
        assert http.get("/v1/jobs?limit=100").status_code == 200
        return http.get("/v1/jobs?limit=101")


@_trips("page of the audit log")
def _(scene: Scene) -> httpx.Response:
    with scene.http() as http:
        assert http.get("/v1/admin/audit?limit=100").status_code == 200
        return http.get("/v1/admin/audit?limit=101")


def _asked(name: str, method: str, path: str, member: str, most: int) -> None:
    """A limit of what is asked of nothing that is there: with the most it is looked for, with more not even that."""

    @_trips(name)
    def _(scene: Scene) -> httpx.Response:
        def ask(http: httpx.Client, number: int) -> httpx.Response:
            if method == "POST":
                return http.post(path, json={"prompt": "x", member: number})
            return http.get(httpx.URL(path).copy_merge_params({member: number}))

        with scene.http() as http:
            assert ask(http, most).status_code in {403, 404}
            return ask(http, most + 1)


_MADE = f"/v1/images/job_{'0' * 28}-0?tenant=acme&expires=1&signature=x"
_asked("entries of a search", "POST", "/v1/memories/toy.none/search", "limit", 100)
_asked("neighbours of a preview", "POST", "/v1/memories/toy.none/preview", "limit", 256)
_asked("sample of a memory", "GET", "/v1/memories/toy.none/stats", "sample", 2000)
_asked("side of a thumbnail", "GET", _MADE, "max_px", 1024)


def _members(name: str, most: dict[str, object], more: dict[str, object]) -> None:
    """A limit of a job's members: the one accepted, the other refused."""

    @_trips(name)
    def _(scene: Scene) -> httpx.Response:
        with scene.http() as http:
            assert http.post("/v1/jobs", json={**JOB, **most}).status_code == 202
            return http.post("/v1/jobs", json={**JOB, **more})


_members("prompt", {"prompt": "x" * 4000}, {"prompt": "x" * 4001})
_members("images", {"n": 10}, {"n": 11})
_members("steps", {"steps": 1}, {"steps": 10**6})
_members("guidance scale", {"guidance_scale": 1.0}, {"guidance_scale": 1e6})
_members("size", {"size": "64x64"}, {"size": "72x72"})
_members("LoRAs", {"loras": []}, {"loras": [{"name": f"l{number}"} for number in range(5)]})
_members(
    "memories read together",
    {"diversity": {"memory": {"also": [{"name": name} for name in "abcd"]}}},
    {"diversity": {"memory": {"also": [{"name": name} for name in "abcde"]}}},
)
_members(
    "metadata",
    {"metadata": dict.fromkeys("abcdefghijklmnop", "x")},
    {"metadata": dict.fromkeys("abcdefghijklmnopq", "x")},
)
_members("deadline", {"deadline_s": 86_400}, {"deadline_s": 86_401})
_members("previews", {"num_previews": 3}, {"num_previews": 4})


def _failed_batch(scene: Scene, content: bytes, **update: object) -> httpx.Response:
    with scene.http(**update) as http:
        batch_id = _batch(http, content).json()["id"]
        until_s = time.monotonic() + PATIENCE_S
        while (answer := http.get(f"/v1/batches/{batch_id}")).json()["status"] != "failed":
            assert time.monotonic() < until_s, answer.text
            time.sleep(0.1)
        return answer


@_trips("lines")
def _(scene: Scene) -> httpx.Response:
    return _failed_batch(scene, b"{}\n{}\n", max_batch_lines=1)


@_trips("length of a line")
def _(scene: Scene) -> httpx.Response:
    return _failed_batch(scene, b"x" * 20_000, max_body_bytes=10_000)


@pytest.fixture
def scene(serve_api: Callable[[Settings], str], own_database: Settings) -> Scene:
    """A database that holds nothing but a key for everything."""
    return Scene(serve_api, own_database)


@pytest.mark.parametrize("name", ROWS)
def test_each_limit_answers_as_its_row_says(scene: Scene, name: str):
    """What is just within it is taken where that can be shown; the request beyond it gets the status and the code."""
    status, code = ROWS[name][4], ROWS[name][5]
    answer = TRIPS[name](scene)
    if status is None:
        found = {error["code"] for error in answer.json()["errors"]["data"]}
        assert (answer.json()["status"], code in found) == ("failed", True), answer.text
        return
    assert (answer.status_code, answer.json()["error"]["code"]) == (int(status), code), answer.text
    is_to_be_tried_again = answer.status_code in (429, 503)
    assert ("retry-after" in answer.headers) is is_to_be_tried_again
    assert 1 <= int(answer.headers.get("retry-after", 1)) <= 120


def test_every_row_has_a_request_and_every_request_a_row():
    """Neither the table nor the test grows alone."""
    assert set(TRIPS) == set(ROWS)
    num_rows = sum(line.startswith("| ") and not line.startswith("| limit") for line in DOCUMENT.splitlines())
    assert num_rows == len(ROWS), "a row is not of the form of the others"


def test_every_setting_that_bounds_something_is_in_the_document():
    """Those that say so by their names."""
    bounding = [name for name in Settings.model_fields if name.startswith("max_") or "_per_" in name]
    assert len(bounding) > 15
    missing = [name for name in bounding if f"`SPARKE_{name.upper()}`" not in DOCUMENT]
    assert missing == ["max_attempts"]  # of workers, which no request meets
