"""`sparke memories` as a person runs it, against a real API."""

import json
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from patience import PATIENCE_S
from serving import serving

from app.errors import ConfigurationError, InvalidArchive, ServiceError
from app.memory.archive import ArchiveReader, ArchiveWriter
from app.transfers import (
    MAX_FRESH_STARTS,
    MemoryClient,
    bring_archive,
    describe_archive,
    run_export,
    run_import,
)

OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/octet-stream\r\n\r\n"
CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("archive_cases.py"))))


def _sparke(*arguments):
    command = [sys.executable, "-P", "-m", "app.cli", "memories", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@contextmanager
def _cutting(
    url: str, *, after_bytes: int, num_cuts: int, then: Callable[[], object] = lambda: None
) -> Iterator[tuple[str, list[int]]]:
    """A way to a service on which connections break, the first ones that carry so many bytes; and what each carried.

    What is to happen `then` does so before the second connection gets anywhere.
    """
    there = httpx.URL(url)
    listener = socket.create_server(("127.0.0.1", 0))
    carried: list[int] = []
    ends = [listener]

    def pump(source, target, place):
        with suppress(OSError):
            while data := source.recv(65_536):
                carried[place] += len(data)
                cuts = sum(count > after_bytes for count in carried[:place])
                if carried[place] > after_bytes and cuts < num_cuts:
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept():
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                if len(carried) == 1:
                    then()
                server = socket.create_connection((there.host, there.port))
                ends.extend((client, server))
                carried.append(0)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=pump, args=(*pair, len(carried) - 1), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", carried
    finally:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def test_out_and_in_again(api_url, http, settings, tmp_path):
    """Standard output is the file, then the memory's id; what the file says of itself; the memory is the same."""
    CASES.fill_memory(settings.redis_url, "travels", 25)
    path = tmp_path / "travels.sparke"
    ended = _sparke("export", "travels", "--out", path, "--url", api_url)
    assert (ended.returncode, ended.stdout) == (0, f"{path}\n"), ended.stderr
    assert ended.stderr.endswith(f"toy.travels: 25 entries, {path.stat().st_size} bytes\n")
    checked = _sparke("check", path)
    told = dict(line.split("\t") for line in checked.stdout.splitlines())
    assert (told["memory"], told["version"], told["entries"]) == ("toy.travels", "25", "25")
    assert told["dimensions"] == "100 feature, 2 prompt"
    for _ in range(2):  # the second time it is there already, and says so alike
        ended = _sparke("import", path, "--name", "arrived", "--url", api_url)
        assert (ended.returncode, ended.stdout) == (0, "toy.arrived\n"), ended.stderr
        assert ended.stderr.endswith("25 entries, version 25\n")
    there = [http.get(f"/v1/memories/toy.{name}/entries?limit=100").json() for name in ("travels", "arrived")]
    assert there[0] == there[1]
    assert list(tmp_path.iterdir()) == [path]


def test_an_export_goes_on(api_url, settings, tmp_path):
    """From what is whole of the part that is there, as of its version; a part of something else is begun anew."""
    CASES.fill_memory(settings.redis_url, "growing", 900, dim=400)
    whole = httpx.get(f"{api_url}/v1/memories/toy.growing/export", timeout=PATIENCE_S).content
    CASES.fill_memory(settings.redis_url, "other", 900, dim=400)
    other = httpx.get(f"{api_url}/v1/memories/toy.other/export?version=800", timeout=PATIENCE_S).content
    path, part = tmp_path / "a.sparke", tmp_path / "a.sparke.part"
    CASES.fill_memory(settings.redis_url, "growing", 950, first=901, dim=400)
    grown = httpx.get(f"{api_url}/v1/memories/toy.growing/export", timeout=PATIENCE_S).content
    parts = [
        (whole[:500_000], whole),
        (whole[:400_000] + b"?" * 90_000, whole),
        (whole, whole),
        (b"SPKM", grown),
    ]
    for there, expected in parts:
        part.write_bytes(there)
        ended = _sparke("export", "toy.growing", "--out", path, "--url", api_url)
        assert ended.returncode == 0, ended.stderr
        assert path.read_bytes() == expected, len(there)
        assert not part.exists()
    part.write_bytes(other[:500_000])
    ended = _sparke("export", "toy.growing", "--out", path, "--url", api_url)
    assert ended.returncode == 0, ended.stderr
    assert f"Beginning anew: {part} is of another memory, toy.other" in ended.stderr
    assert path.read_bytes() == grown


def _made_anew(archive: bytes) -> bytes:
    """The same archive of a memory that was made later."""
    reader = ArchiveReader()
    [head, entries, end] = reader.feed(archive)
    writer = ArchiveWriter(replace(head.header, created_at_ms=2_000_000))
    return writer.begin() + writer.add(entries.entries) + writer.end(forget_version=end.end.forget_version)


def test_a_whole_part_of_another_memory_is_not_handed_over(api_url, settings, tmp_path):
    """One with another name, or one that had this name before: what the archive says of itself tells."""
    for name in ("part-of-mine", "part-of-theirs"):
        CASES.fill_memory(settings.redis_url, name, 5)
    mine, theirs = (
        httpx.get(f"{api_url}/v1/memories/toy.{name}/export", timeout=PATIENCE_S).content
        for name in ("part-of-mine", "part-of-theirs")
    )
    path, part = tmp_path / "a.sparke", tmp_path / "a.sparke.part"
    for there in (theirs, _made_anew(mine)):
        part.write_bytes(there)
        run_export("part-of-mine", path, api_url, None)
        assert path.read_bytes() == mine
        assert list(tmp_path.iterdir()) == [path]


def test_an_archive_that_cannot_get_its_name_is_not_lost(api_url, settings, tmp_path):
    """Where it lies is said."""
    CASES.fill_memory(settings.redis_url, "nameless", 5)
    (tmp_path / "taken").mkdir()
    with pytest.raises(
        ConfigurationError, match=rf"{tmp_path}/taken cannot be written.*{tmp_path}/taken.part"
    ):
        run_export("nameless", tmp_path / "taken", api_url, None)
    assert "toy.nameless" in describe_archive(tmp_path / "taken.part")


def test_what_is_forgotten_between_two_connections(api_url, http, settings, tmp_path):
    """The part that has come is of no archive any more, though this very call has begun it: it is begun anew."""
    CASES.fill_memory(settings.redis_url, "cut-and-forgetful", 3000, dim=400)
    path = tmp_path / "out"

    def forget():
        http.delete("/v1/memories/toy.cut-and-forgetful/entries/7").raise_for_status()

    with _cutting(api_url, after_bytes=1_500_000, num_cuts=1, then=forget) as (url, _):
        run_export("cut-and-forgetful", path, url, None)
    whole = httpx.get(f"{api_url}/v1/memories/toy.cut-and-forgetful/export", timeout=PATIENCE_S).content
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_an_export_is_not_begun_anew_for_ever(tmp_path):
    """What breaks off each time, and each time does not fit what came before, ends as the error that it is."""
    archive, asked = CASES.make_archive("a", range(1, 3000)), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            from_byte = int(self.path.partition("from_byte=")[2].partition("&")[0])
            asked.append(from_byte)
            self.send_response(200)
            self.send_header("content-type", "application/octet-stream")
            self.send_header("content-length", str(len(archive) - from_byte))
            self.end_headers()
            self.wfile.write(b"?" * (len(archive) - from_byte) if from_byte else archive[:600_000])

        def log_message(self, format, *args):  # noqa: A002 - the standard library's name
            """Silent."""

    memory = {"id": "toy.a", "created_at": 1}
    with (
        serving(Handler) as port,
        closing(MemoryClient(f"http://127.0.0.1:{port}", None, sleep=lambda _: None)) as client,
        pytest.raises(InvalidArchive, match="expected a block"),
    ):
        bring_archive(client, memory, tmp_path / "part", lambda _: None)
    assert len(asked) == 2 * (1 + MAX_FRESH_STARTS)
    assert asked.count(0) == 1 + MAX_FRESH_STARTS


def test_connections_that_break(api_url, http, settings, tmp_path):
    """Both ways are gone on with, and what had come is not sent again."""
    CASES.fill_memory(settings.redis_url, "broken-off", 5500, dim=400)
    path = tmp_path / "far.sparke"
    with _cutting(api_url, after_bytes=3_000_000, num_cuts=1) as (url, carried):
        ended = _sparke("export", "broken-off", "--out", path, "--url", url)
        assert (ended.returncode, ended.stderr.count("Waiting:")) == (0, 1), ended.stderr
        assert (
            path.read_bytes()
            == httpx.get(f"{api_url}/v1/memories/toy.broken-off/export", timeout=PATIENCE_S).content
        )
        size_bytes = path.stat().st_size
        assert size_bytes > 4_500_000
        assert sum(carried) < size_bytes + 1_500_000
    with _cutting(api_url, after_bytes=3_000_000, num_cuts=1) as (url, carried):
        ended = _sparke("import", path, "--name", "broken-off-again", "--url", url)
        assert (ended.returncode, ended.stdout) == (0, "toy.broken-off-again\n"), ended.stderr
        assert ended.stderr.count("Waiting:") >= 1
        assert sum(carried) < size_bytes + 1_500_000
    assert http.get("/v1/memories/toy.broken-off-again").json()["num_entries"] == 5500


def test_an_answer_that_only_ends_is_not_taken_for_whole(tmp_path):
    """Something in between may end a body early without a sign of it; the archive's own end mark is missing."""
    memory = {"id": "toy.a", "name": "a", "num_entries": 3}
    listed = json.dumps({"data": [memory], "last_id": "toy.a", "has_more": False}).encode()
    bodies = [listed, CASES.make_archive("a")[:400]]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            for body in bodies:
                client, _ = listener.accept()
                with client:
                    client.recv(65_536)
                    client.sendall(OK + body)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(InvalidArchive, match="ends at byte 400"):
            run_export("a", tmp_path / "out", url, None)
        thread.join(PATIENCE_S)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        (lambda there, url: run_export("nowhere", there("out"), url, None), "there is no memory 'nowhere'"),
        (
            lambda there, url: run_export("twice", there("out"), url, None),
            "several memories are named 'twice': other.twice, toy.twice",
        ),
        (lambda there, url: run_import(there("cut"), url, None, None), "the archive ends at byte 300"),
        (lambda there, url: run_import(there("altered"), url, None, None), "block 2 of the archive"),
        (lambda there, url: run_import(there("good"), url, None, "No\nName"), "a memory name"),
        (lambda there, _: describe_archive(there("altered")), "block 2 of the archive"),
        (
            lambda there, url: run_import(there("good"), url, None, "twice"),
            "memory toy.twice has versions already.*--name",
        ),
    ],
)
def test_what_cannot_be(api_url, http, tmp_path, deed, said):
    """One message, and nothing is left."""
    for space in ("toy", "other"):
        headers = {"content-type": "application/octet-stream"}
        made = http.post(
            "/v1/memories/import", content=CASES.make_archive("twice", space=space), headers=headers
        )
        assert made.status_code in (200, 409)
    good = CASES.make_archive("once")
    files = {"good": good, "cut": good[:300], "altered": good[:200] + b"?" + good[201:]}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ServiceError, match=said):
        deed(lambda name: tmp_path / name, api_url)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    assert http.get("/v1/memories/toy.once").status_code == 404


def test_an_error_is_one_line_and_an_exit_code(tmp_path):
    """As of every command."""
    (tmp_path / "cut").write_bytes(CASES.make_archive("once")[:300])
    ended = _sparke("check", tmp_path / "cut")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("sparke: the archive ends at byte 300")
    assert ended.stderr.count("\n") == 1
