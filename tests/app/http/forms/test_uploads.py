"""Uploads as they come over the wire: malformed, too large, slow, broken off, and all at once."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from patience import PATIENCE_S

from app.domain.ids import make_file_id
from app.files.contents import FileContents
from app.files.keys import SWEEP_KEY
from app.files.store import FileStore
from app.files.sweeper import SLACK_S, FileSweeper
from app.jobs.workers import now_ms
from app.redis.connection import connect
from app.redis.embedded import EmbeddedRedis
from app.settings import Settings

ServeApi = Callable[[Settings], str]

BOUNDARY = "x7MA4YWx"
HEADERS = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
LINES = b'{"custom_id": "1"}\n'
MEGABYTE = 2**20


def _field(name: str, value: str) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
    return f"{head}{value}\r\n".encode()


def _file(data: bytes = LINES, name: str = "file") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="a.jsonl"\r\n\r\n'
    return head.encode() + data + b"\r\n"


PURPOSE = _field("purpose", "batch")
END = f"--{BOUNDARY}--\r\n".encode()


def _kept(settings: Settings) -> list[str]:
    """Everything in the folder of the files' store; what goes while it is walked is not there."""
    folder = settings.data_dir / "files"
    return sorted(
        (Path(where) / name).relative_to(folder).as_posix()
        for where, _, names in os.walk(folder)
        for name in names
    )


@pytest.fixture
def own(settings: Settings, tmp_path: Path) -> Settings:
    """Settings of an API with files of the test's own."""
    return settings.model_copy(update={"redis_url": f"{settings.redis_url}?db=7", "data_dir": tmp_path})


@pytest.fixture
def clean(own: Settings) -> None:
    """No records from another test."""
    asyncio.run(_flush(own.redis_url or ""))


async def _flush(redis_url: str) -> None:
    redis = connect(redis_url)
    await redis.flushdb()
    await redis.aclose()


@pytest.fixture
def small_url(serve_api: ServeApi, own: Settings, clean: None) -> str:  # noqa: ARG001
    """An API with tight bounds."""
    return serve_api(
        own.model_copy(
            update={
                "max_file_bytes": MEGABYTE,
                "max_files_per_tenant": 3,
                "max_uploads_per_tenant": 2,
            }
        )
    )


@pytest.mark.parametrize(
    ("body", "code", "param", "said"),
    [
        (PURPOSE + END, "missing_required_parameter", "file", "file"),
        (_file() + END, "missing_required_parameter", "purpose", "purpose"),
        (PURPOSE + _file(b"") + END, "invalid_value", "file", "empty"),
        (_file(b"") + PURPOSE + END, "invalid_value", "file", "empty"),
        (PURPOSE + _field("file", "text") + END, "invalid_multipart", None, "filename"),
        (PURPOSE + PURPOSE + _file() + END, "invalid_multipart", None, "twice"),
        (PURPOSE + _file() + _file() + END, "invalid_multipart", None, "twice"),
        (PURPOSE + _file() + _field("colour", "red") + END, "unknown_parameter", "colour", "unknown"),
        (
            PURPOSE + _file() + _field("porpoise", "x") + END,
            "unknown_parameter",
            "porpoise",
            "did you mean 'purpose'",
        ),
        (PURPOSE + _field("purpose[a]", "b") + _file() + END, "unknown_parameter", None, ""),
        (_field("purpose", "p" * 5000) + _file() + END, "invalid_multipart", None, "1024"),
        (_field("expires_after", "3600") + PURPOSE + _file() + END, "invalid_type", "expires_after", ""),
        (PURPOSE + _file(), "invalid_multipart", None, "last boundary"),
        (PURPOSE + _file() + END[:-4], "invalid_multipart", None, "last boundary"),
        (b"", "invalid_multipart", None, "last boundary"),
        (b'{"purpose": "batch"}', "invalid_multipart", None, "boundary"),
    ],
)
def test_a_malformed_body_is_refused_and_leaves_nothing(small_url, own, body, code, param, said):
    """400 with what is wrong; no bytes and no file."""
    answer = httpx.post(f"{small_url}/v1/files", content=body, headers=HEADERS, timeout=PATIENCE_S)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, code), error
    if param:
        assert error["param"] == param
    assert said in error["message"]
    assert _until_nothing_is_kept(own) == []
    assert httpx.get(f"{small_url}/v1/files", timeout=PATIENCE_S).json()["data"] == []


def test_another_content_type_is_refused(small_url):
    """415, as for JSON elsewhere."""
    answer = httpx.post(f"{small_url}/v1/files", json={"purpose": "batch"}, timeout=PATIENCE_S)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_fields_may_follow_the_file(small_url):
    """As `curl -F file=@… -F purpose=batch` sends them."""
    expires = _field("expires_after[seconds]", "7200") + _field("expires_after[anchor]", "created_at")
    made = httpx.post(
        f"{small_url}/v1/files",
        content=_file() + expires + PURPOSE + END,
        headers=HEADERS,
        timeout=PATIENCE_S,
    )
    assert made.status_code == 200, made.text
    assert made.json()["expires_at"] - made.json()["created_at"] == 7200
    assert set(made.json()) == {
        *("id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status")
    }


@pytest.mark.parametrize("size_bytes", [MEGABYTE + 1, 40 * MEGABYTE])
def test_a_file_above_the_limit_is_refused_and_leaves_nothing(small_url, own, size_bytes):
    """413 that tells the limit, also to a client that does not say how much will come; at the limit it is taken."""
    with openai.OpenAI(base_url=f"{small_url}/v1", api_key="unused", max_retries=0) as client:
        with pytest.raises(openai.APIStatusError, match=str(MEGABYTE)) as caught:
            client.files.create(file=("a.jsonl", b"1" * size_bytes), purpose="batch")
        assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
        pieces = (b"1" * 65536 for _ in range(size_bytes // 65536 + 1))
        answer = httpx.post(
            f"{small_url}/v1/files", content=_chunked(pieces), headers=HEADERS, timeout=PATIENCE_S
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
        assert _until_nothing_is_kept(own) == []
        made = client.files.create(file=("a.jsonl", b"1" * MEGABYTE), purpose="batch")
        assert made.bytes == MEGABYTE


def _chunked(pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield PURPOSE + _file(b"")[:-2]
    yield from pieces
    yield b"\r\n" + END


def test_a_wrong_purpose_is_said_before_the_file_has_come(small_url):
    """The answer is there while most of the body is not."""
    with _connection(small_url) as wire:
        _send_head(wire, length=MEGABYTE)
        wire.sendall(_field("purpose", "fine-tune") + _file(b"1" * 1000)[:-2])
        assert b" 400 " in wire.recv(65536).splitlines()[0]


def test_a_tenant_that_keeps_its_most_is_told_so_at_once(small_url, own):
    """400, which no client repeats, before the body; a deletion makes room."""
    with openai.OpenAI(base_url=f"{small_url}/v1", api_key="unused", max_retries=2) as client:
        made = [client.files.create(file=("a.jsonl", LINES), purpose="batch") for _ in range(3)]
        with pytest.raises(openai.BadRequestError, match="3 files") as caught:
            client.files.create(file=("a.jsonl", LINES), purpose="batch")
        assert caught.value.code == "too_many_files"
        with _connection(small_url) as wire:
            _send_head(wire, length=MEGABYTE)
            assert b" 400 " in wire.recv(65536).splitlines()[0]
        client.files.delete(made[0].id)
        client.files.create(file=("a.jsonl", LINES), purpose="batch")
        assert len(_kept(own)) == 3


def test_the_bound_holds_against_uploads_at_once(serve_api, own, clean):  # noqa: ARG001
    """Twelve that come together to a tenant that may keep three: three are there, with bytes, and nothing else."""
    url = serve_api(own.model_copy(update={"max_files_per_tenant": 3, "max_uploads_per_tenant": 12}))

    def upload(_: int) -> int:
        return httpx.post(
            f"{url}/v1/files", content=PURPOSE + _file() + END, headers=HEADERS, timeout=60
        ).status_code

    with ThreadPoolExecutor(12) as pool:
        ends = list(pool.map(upload, range(12)))
    assert sorted(ends) == [200] * 3 + [400] * 9
    listed = [file["id"] for file in httpx.get(f"{url}/v1/files", timeout=PATIENCE_S).json()["data"]]
    assert sorted(f"files/default/{file_id}" for file_id in listed) == _kept(own)


def test_slow_uploads_hold_up_nobody_else(small_url):
    """While two of a tenant trickle, the API answers; a third is told to come later, and is taken when one is done."""
    with _connection(small_url) as one, _connection(small_url) as other:
        body = PURPOSE + _file() + END
        for wire in (one, other):
            _send_head(wire, length=len(body), more=b"expect: 100-continue\r\n")
            assert b" 100 " in wire.recv(65536).splitlines()[0], "it is not being read"
            wire.sendall(body[:100])
        refused = httpx.post(f"{small_url}/v1/files", content=body, headers=HEADERS, timeout=PATIENCE_S)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "too_many_uploads"
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        started_s = time.monotonic()
        for _ in range(5):
            assert httpx.get(f"{small_url}/v1/files", timeout=PATIENCE_S).status_code == 200
        assert time.monotonic() - started_s < PATIENCE_S, "five answers of some milliseconds each"
        one.sendall(body[100:])
        assert b" 200 " in one.recv(65536).splitlines()[0]
        assert (
            httpx.post(f"{small_url}/v1/files", content=body, headers=HEADERS, timeout=PATIENCE_S).status_code
            == 200
        )


def test_an_upload_that_takes_too_long_is_ended(serve_api, own, clean):  # noqa: ARG001
    """408, the connection closed, nothing left."""
    url = serve_api(own.model_copy(update={"upload_timeout_s": 1.0}))
    with _connection(url) as wire:
        _send_head(wire, length=MEGABYTE)
        wire.sendall(PURPOSE + _file(b"1" * 5000)[:-2])
        stop = threading.Event()
        threading.Thread(target=_trickle, args=(wire, stop), daemon=True).start()
        said = wire.recv(65536)
        stop.set()
    assert b" 408 " in said.splitlines()[0]
    assert b"connection: close" in said.lower()
    assert _until_nothing_is_kept(own) == []


def _trickle(wire: socket.socket, stop: threading.Event) -> None:
    try:
        while not stop.wait(0.1):
            wire.sendall(b"1")
    except OSError:
        return


@pytest.mark.parametrize("sent_bytes", [10, 3 * MEGABYTE])
def test_an_upload_that_breaks_off_leaves_nothing(serve_api, own, clean, sent_bytes):  # noqa: ARG001
    """The client is gone in the middle: no file, no bytes, before any sweep."""
    url = serve_api(own)
    with _connection(url) as wire:
        _send_head(wire, length=8 * MEGABYTE)
        wire.sendall(PURPOSE + _file(b"")[:-2] + b"1" * sent_bytes)
        if sent_bytes > MEGABYTE:
            _wait_for(lambda: bool(_kept(own)))
    assert _until_nothing_is_kept(own) == []
    assert httpx.get(f"{url}/v1/files", timeout=PATIENCE_S).json()["data"] == []
    metrics = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text
    assert "sparke_file_uploads_in_flight 0.0" in metrics
    assert "sparke_files_uploaded_total 0.0" in metrics


def test_uploads_are_counted(serve_api, own, clean):  # noqa: ARG001
    """Files and bytes, in and out."""
    url = serve_api(own)
    made = httpx.post(
        f"{url}/v1/files", content=PURPOSE + _file() + END, headers=HEADERS, timeout=PATIENCE_S
    ).json()
    httpx.get(f"{url}/v1/files/{made['id']}/content", timeout=PATIENCE_S)
    httpx.delete(f"{url}/v1/files/{made['id']}", timeout=PATIENCE_S)
    text = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text
    for line in (
        "sparke_files_uploaded_total 1.0",
        "sparke_files_deleted_total 1.0",
        f'sparke_file_bytes_total{{direction="in"}} {len(LINES)}.0',
        f'sparke_file_bytes_total{{direction="out"}} {len(LINES)}.0',
    ):
        assert line in text


def test_where_redis_is_away_the_bytes_wait_for_the_sweep(tmp_path, settings, serve_api):
    """Redis dies between the last byte and the record: 503, no file; nobody knows yet, so the bytes stay."""
    with EmbeddedRedis.start(tmp_path / "redis") as server:
        own = settings.model_copy(
            update={"redis_url": server.url, "data_dir": tmp_path / "data", "redis_timeout_s": PATIENCE_S}
        )
        url = serve_api(own)
        body = PURPOSE + _file(b"1" * 3 * MEGABYTE) + END
        with _connection(url) as wire:
            _send_head(wire, length=len(body))
            wire.sendall(body[: 2 * MEGABYTE])
            _wait_for(lambda: bool(_kept(own)))
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            wire.sendall(body[2 * MEGABYTE :])
            assert b" 503 " in wire.recv(65536).splitlines()[0]
    (key,) = _kept(own)
    assert "#" not in key


@contextmanager
def _api_process(redis_url: str, data_dir: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPARKE_")}
    command = [sys.executable, "-P", "-m", "app.cli", "api", "--port", "0", "--data-dir", str(data_dir)]
    process = subprocess.Popen(
        command, env={**env, "SPARKE_REDIS_URL": redis_url}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        with process.stdout:
            yield process.stdout.readline().removeprefix("SPARKE API: ").strip(), process
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def test_an_api_killed_in_an_upload_leaves_nothing_after_the_sweep(own, clean):  # noqa: ARG001
    """SIGKILL in the middle: parts lie in the store that no listing shows; the sweep of any other process finds them."""
    with _api_process(own.redis_url or "", own.data_dir) as (url, process):
        made = httpx.post(
            f"{url}/v1/files", content=PURPOSE + _file() + END, headers=HEADERS, timeout=PATIENCE_S
        ).json()
        with _connection(url) as wire:
            _send_head(wire, length=8 * MEGABYTE)
            wire.sendall(PURPOSE + _file(b"")[:-2] + b"1" * 3 * MEGABYTE)
            _wait_for(lambda: len(_kept(own)) == 2)
            process.kill()
            process.wait(PATIENCE_S)
    kept = f"files/default/{made['id']}"
    assert len(_kept(own)) == 2
    later_ms = int((1 + SLACK_S) * 1000) + 5000
    assert asyncio.run(_sweep(own, later_ms)) == 1
    assert _kept(own) == [kept]


def test_an_api_sweeps_by_itself(serve_api, own, clean):  # noqa: ARG001
    """What a killed process left is gone soon after another one has started."""
    orphan = own.data_dir / "files/files/default" / make_file_id(1, bytes(12))
    orphan.parent.mkdir(parents=True)
    for path in (orphan, orphan.with_name(f"{orphan.name}#1")):
        path.write_bytes(LINES)
        os.utime(path, (1, 1))
    serve_api(own)
    assert _until_nothing_is_kept(own) == []


async def _sweep(settings: Settings, later_ms: int) -> int:
    redis = connect(settings.redis_url or "")
    await redis.delete(SWEEP_KEY)
    store = FileStore(redis, max_files=10, clock_ms=now_ms)
    contents = FileContents.open(settings.file_store_url)
    sweeper = FileSweeper(redis, store, contents, upload_timeout_s=1.0, clock_ms=lambda: now_ms() + later_ms)
    try:
        return await sweeper.sweep()
    finally:
        await redis.aclose()


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of resident memory is read from /proc")
@pytest.mark.parametrize(
    "size_mb", [48, pytest.param(200, marks=pytest.mark.slow)], ids=lambda size_mb: f"{size_mb}MB"
)
def test_an_upload_is_never_held_in_memory(own, clean, size_mb):  # noqa: ARG001
    """Nor is a download: the API's peak rises by less than 16 MB, whatever the size.

    Two parts of 1 MB, the buffers of sockets, and what the first use of both ways loads: 5 MB where it was measured.
    """
    piece = bytes(range(256)) * 256
    with _api_process(own.redis_url or "", own.data_dir) as (url, process):
        small = httpx.post(
            f"{url}/v1/files", content=PURPOSE + _file() + END, headers=HEADERS, timeout=PATIENCE_S
        ).json()
        httpx.get(f"{url}/v1/files/{small['id']}/content", timeout=PATIENCE_S)
        before_kb = _peak_kb(process.pid)
        pieces = (piece for _ in range(size_mb * 16))
        made = httpx.post(f"{url}/v1/files", content=_chunked(pieces), headers=HEADERS, timeout=120)
        assert made.status_code == 200, made.text
        assert made.json()["bytes"] == size_mb * MEGABYTE
        num_bytes = 0
        with httpx.stream("GET", f"{url}/v1/files/{made.json()['id']}/content", timeout=120) as answer:
            for chunk in answer.iter_bytes():
                num_bytes += len(chunk)
        assert num_bytes == size_mb * MEGABYTE
        risen_mb = (_peak_kb(process.pid) - before_kb) / 1024
        assert risen_mb < 16, f"from {before_kb / 1024:.0f} MB"


def _peak_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


@contextmanager
def _connection(url: str) -> Iterator[socket.socket]:
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 0), timeout=PATIENCE_S) as wire:
        yield wire


def _send_head(wire: socket.socket, *, length: int, more: bytes = b"") -> None:
    host = "{}:{}".format(*wire.getpeername())
    head = f"POST /v1/files HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n"
    wire.sendall(f"{head}content-type: {HEADERS['content-type']}\r\n".encode() + more + b"\r\n")


def _wait_for(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s, "it did not come"
        time.sleep(0.02)


def _until_nothing_is_kept(settings: Settings) -> list[str]:
    """What is left once the store has had time to remove what was given up."""
    until_s = time.monotonic() + PATIENCE_S
    while _kept(settings) and time.monotonic() < until_s:
        time.sleep(0.02)
    return _kept(settings)
