"""Export and import of memories over HTTP."""

import asyncio
import base64
import io
import runpy
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from patience import PATIENCE_S
from PIL import Image

from app.domain.ids import ImportId, LatentSpace, MemoryName, TenantId
from app.errors import InvalidArchive
from app.http.course.imports import Receiver, Target
from app.memory.importing import ImportLimits, MemoryImporter
from app.memory.keys import MemoryKey
from app.memory.store import MemoryStore
from app.redis.connection import connect
from app.tenants.keys import KeyStore

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("archive_cases.py"))))
OCTETS = {"content-type": "application/octet-stream"}


def _id(number):
    return f"imp_{number:028x}"


def _export(http, name, **params):
    answer = http.get(f"/v1/memories/toy.{name}/export", params=params)
    assert answer.status_code == 200, answer.text
    return answer


def _import(http, data, **params):
    return http.post("/v1/memories/import", content=data, params=params, headers=OCTETS)


def _entries(http, name):
    page = http.get(f"/v1/memories/toy.{name}/entries", params={"order": "asc", "limit": 100}).json()
    return [(entry["version"], entry["image_id"], entry["seed"]) for entry in page["data"]]


def test_a_memory_goes_out_and_comes_in(http, settings):
    """Under another name, with its versions, ids and times; its archive is then the same but for the name."""
    CASES.fill_memory(settings.redis_url, "out", 40)
    answer = _export(http, "out")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert 'filename="toy.out-40.sparke"' in answer.headers["content-disposition"]
    imported = _import(http, answer.content, name="back")
    assert imported.status_code == 200, imported.text
    told = imported.json()
    assert told["id"].startswith("imp_")
    assert {member: told[member] for member in told if member != "id"} == {
        "object": "memory.import",
        "status": "completed",
        "memory_id": "toy.back",
        "name": "back",
        "latent_space": "toy",
        "version": 40,
        "num_entries": 40,
        "received_bytes": len(answer.content),
        "warnings": [],
    }
    assert _entries(http, "back") == _entries(http, "out")
    out, back = (http.get(f"/v1/memories/toy.{name}").json() for name in ("out", "back"))
    for member in ("version", "num_entries", "created_at", "newest_entry_at"):
        assert out[member] == back[member]
    assert _export(http, "back").content[61:] != answer.content[61:]
    assert len(_export(http, "back").content) == len(answer.content) + 1


def test_a_memory_as_it_was(http, settings):
    """An earlier version has the entries up to it; a later one than now is refused."""
    CASES.fill_memory(settings.redis_url, "was", 10)
    assert _import(http, _export(http, "was", version=4).content, name="was4").json()["num_entries"] == 4
    refused = http.get("/v1/memories/toy.was/export", params={"version": 11})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "version")


def test_an_export_goes_on_from_any_byte(http, settings):
    """What was there and the rest are the whole, though the memory has grown meanwhile."""
    CASES.fill_memory(settings.redis_url, "parts", 30)
    whole = _export(http, "parts").content
    rests = [_export(http, "parts", version=30, from_byte=at).content for at in (0, 5, 3000)]
    assert [whole[:at] + rest for at, rest in zip((0, 5, 3000), rests, strict=True)] == [whole] * 3
    assert _export(http, "parts", version=30, from_byte=len(whole)).content == b""
    refused = http.get("/v1/memories/toy.parts/export", params={"from_byte": len(whole) + 1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "from_byte")


def test_a_memory_that_holds_something_is_not_written_to(http, settings):
    """409, which no client tries again by itself, and nothing has changed."""
    CASES.fill_memory(settings.redis_url, "taken", 3)
    answer = _import(http, CASES.make_archive("taken", range(1, 9)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "memory_exists")
    assert answer.headers["x-should-retry"] == "false"
    assert len(_entries(http, "taken")) == 3


def test_an_import_in_parts(http):
    """What came whole is kept under the client's id; it goes on from there, or from anywhere before."""
    archive = CASES.make_archive("steps", range(1, 2001), dim=300)
    first = _import(http, archive[: len(archive) // 2], import_id=_id(1))
    assert (first.status_code, first.json()["error"]["code"]) == (400, "invalid_archive")
    assert f"ends at byte {len(archive) // 2}" in first.json()["error"]["message"]
    assert http.get("/v1/memories/toy.steps").status_code == 404
    shown = http.get(f"/v1/memories/import/{_id(1)}").json()
    came = shown["received_bytes"]
    assert (shown["status"], shown["memory_id"], shown["version"]) == ("in_progress", "toy.steps", 2000)
    assert len(archive) // 4 < came <= len(archive) // 2
    too_far = _import(http, archive[came + 1 :], import_id=_id(1), from_byte=came + 1)
    assert (too_far.status_code, too_far.json()["error"]["param"]) == (400, "from_byte")
    elsewhere = _import(http, archive[came:], import_id=_id(1), from_byte=came, name="other")
    assert (elsewhere.status_code, elsewhere.json()["error"]["param"]) == (400, "name")
    again = _import(http, archive[1000 : came + 300_000], import_id=_id(1), from_byte=1000)
    assert again.status_code == 400
    later = http.get(f"/v1/memories/import/{_id(1)}").json()["received_bytes"]
    assert later > came
    last = _import(http, archive[later:], import_id=_id(1), from_byte=later)
    assert (last.status_code, last.json()["num_entries"]) == (200, 2000), last.text
    assert _import(http, b"", import_id=_id(1), from_byte=len(archive)).json() == last.json()
    assert http.get(f"/v1/memories/import/{_id(1)}").json() == last.json()


@pytest.mark.parametrize("place", [3, 30, 100, 1000, -1])
def test_an_altered_archive_leaves_nothing(http, settings, place):
    """400 with where; not even what came before it, and no import that could be gone on with."""
    archive = bytearray(CASES.make_archive("altered", range(1, 1001), dim=400))
    archive[place] ^= 1
    before = CASES.keys_of_imports(settings.redis_url)
    answer = _import(http, bytes(archive), import_id=_id(2))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_archive")
    assert http.get("/v1/memories/toy.altered").status_code == 404
    assert http.get(f"/v1/memories/import/{_id(2)}").status_code == 404
    assert CASES.keys_of_imports(settings.redis_url) == before


@pytest.mark.anyio
async def test_bytes_behind_the_end_are_found_before_the_memory_is_there(settings):
    """Also where they come when all of the archive was looked at before."""
    redis, name = connect(settings.redis_url), MemoryName("behind")
    memory = MemoryKey(TenantId("default"), LatentSpace("toy"), name)
    importer = MemoryImporter(redis, ImportLimits(100, 4), clock_ms=lambda: 1000)
    receiver = Receiver(importer, Target(memory.tenant_id, ImportId(_id(7)), name), None)
    try:
        await receiver.take(CASES.make_archive(name, range(1, 1001), dim=400))
        assert (receiver.record.progress.num_entries, receiver.is_cut_off) == (1000, False)
        await receiver.take(b"x" * 10)
        with pytest.raises(InvalidArchive, match="behind the end mark"):
            await receiver.finish()
        assert await MemoryStore(redis).version(memory) == 0
    finally:
        await receiver.discard()
        await redis.aclose()


@pytest.mark.parametrize("import_id", [None, _id(3)])
def test_a_connection_that_breaks(http, settings, import_id):
    """Without an id nothing is left; with one what came is kept, and the whole file again makes the memory."""
    name = f"broken{1 if import_id else 0}"
    archive = CASES.make_archive(name, range(1, 2001), dim=300)
    before = set(CASES.keys_of_imports(settings.redis_url))
    query = f"?import_id={import_id}" if import_id else ""
    url = httpx.URL(str(http.base_url))
    with socket.create_connection((url.host, url.port)) as connection:
        head = f"POST /v1/memories/import{query} HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: application/octet-stream\r\n"
        connection.sendall(f"{head}Content-Length: {len(archive)}\r\n\r\n".encode() + archive[:900_000])
        _wait(lambda: len(set(CASES.keys_of_imports(settings.redis_url)) - before) == 3)
    if import_id is None:
        _wait(lambda: set(CASES.keys_of_imports(settings.redis_url)) == before)
    else:
        assert _import(http, archive, import_id=import_id).json()["num_entries"] == 2000
    assert http.get(f"/v1/memories/toy.{name}").status_code == (200 if import_id else 404)


def _wait(is_so):
    until_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < until_s
        time.sleep(0.05)


def test_another_latent_space_is_taken_with_a_warning(http):
    """The catalogue may get such a model later; until then nothing reads it."""
    told = _import(http, CASES.make_archive("far", space="sdxl-16x16")).json()
    assert (told["status"], told["memory_id"]) == ("completed", "sdxl-16x16.far")
    assert len(told["warnings"]) == 1
    assert "'sdxl-16x16'" in told["warnings"][0]
    assert http.get("/v1/memories/sdxl-16x16.far").json()["num_entries"] == 3


@pytest.mark.parametrize(
    ("params", "headers", "status", "param"),
    [
        ({"name": "Not A Name"}, OCTETS, 400, "name"),
        ({"import_id": "imp_1"}, OCTETS, 400, "import_id"),
        ({"from_byte": -1}, OCTETS, 400, "from_byte"),
        ({"from_byte": 1}, OCTETS, 400, "from_byte"),
        ({}, {"content-type": "application/json"}, 415, None),
        ({}, {}, 415, None),
    ],
)
def test_what_is_asked_wrongly_is_refused(http, params, headers, status, param):
    """Before any of the body is looked at."""
    answer = http.post(
        "/v1/memories/import", content=CASES.make_archive("never"), params=params, headers=headers
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert http.get("/v1/memories/toy.never").status_code == 404


def test_bounds(serve_api, own_database):
    """An archive that is too large, said or found; too many unfinished imports; too many at once."""
    archive = CASES.make_archive("large", range(1, 101), dim=300)
    bounds = {
        "max_import_bytes": len(archive) - 1,
        "max_imports_per_tenant": 1,
        "max_transfers_per_tenant": 1,
    }
    settings = own_database.model_copy(update=bounds)
    CASES.fill_memory(settings.redis_url, "slow", 400, dim=65_000)
    with httpx.Client(base_url=serve_api(settings), timeout=60) as http:
        for body in (archive, iter([archive[:100], archive[100:]])):
            answer = _import(http, body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
        assert CASES.keys_of_imports(settings.redis_url) == []
        assert _import(http, archive[:-1], import_id=_id(4)).status_code == 400
        full = _import(http, CASES.make_archive("small"), import_id=_id(5))
        assert (full.status_code, full.json()["error"]["code"]) == (429, "too_many_transfers")
        assert 1 <= int(full.headers["retry-after"]) <= 120
        with http.stream("GET", "/v1/memories/toy.slow/export") as busy:
            assert busy.status_code == 200
            refused = http.get("/v1/memories/toy.slow/export")
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_transfers")
        _wait(lambda: http.get("/v1/memories/toy.slow/export", params={"version": 1}).status_code == 200)


def test_a_quota_of_entries(serve_api, own_database):
    """What is beyond it is refused as soon as the header says so, and where that says less than comes; nothing is left."""
    settings = own_database.model_copy(update={"max_memory_entries": 5})
    CASES.fill_memory(settings.redis_url, "there", 2)
    with httpx.Client(base_url=serve_api(settings), timeout=60) as http:
        many = CASES.make_archive("many", range(1, 5))
        for body in (many[:200], CASES.make_archive("many", range(1, 5), num_said=0)):
            answer = _import(http, body, import_id=_id(8))
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "memory_full")
        assert CASES.keys_of_imports(settings.redis_url) == []
        assert _import(http, CASES.make_archive("few", range(1, 4))).status_code == 200


@pytest.mark.parametrize(("caps", "left"), [({"max_entries": 3}, [198, 199, 200]), ({"max_age_s": 60}, [])])
def test_a_memory_that_an_archive_goes_into_keeps_to_its_caps(http, caps, left):
    """Of an archive with more, or older ones, the newest stay; asking again changes nothing."""
    name = "by-number" if left else "by-age"
    made = http.post("/v1/memories", json={"name": name, "model": "toy", **caps})
    assert made.status_code == 201, made.text
    archive, import_id = CASES.make_archive(name, range(1, 201)), _id(20 + len(left))
    told = _import(http, archive, import_id=import_id)
    assert (told.status_code, told.json()["num_entries"]) == (200, 200), told.text
    assert [version for version, *_ in _entries(http, name)] == left
    shown = http.get(f"/v1/memories/toy.{name}").json()
    assert shown["version"] > told.json()["version"] == 200
    assert _import(http, b"", import_id=import_id, from_byte=len(archive)).json() == told.json()
    assert http.get(f"/v1/memories/toy.{name}").json() == shown


def test_a_frozen_memory_takes_no_archive(http):
    """Said once its header has come, and nothing is left; as soon as it is thawed the same archive goes in."""
    made = http.post("/v1/memories", json={"name": "ice", "model": "toy"})
    assert made.status_code == 201, made.text
    http.patch("/v1/memories/toy.ice", json={"frozen": True})
    archive = CASES.make_archive("ice", range(1, 201))
    refused = _import(http, archive[:200], import_id=_id(30))
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "memory_frozen")
    assert http.get(f"/v1/memories/import/{_id(30)}").status_code == 404
    http.patch("/v1/memories/toy.ice", json={"frozen": False})
    assert _import(http, archive, import_id=_id(30)).status_code == 200


def test_a_client_that_does_not_read_is_waited_for(serve_api, own_database):
    """The memory is not read into the API meanwhile: of 200 reads of Redis few are made."""
    CASES.fill_memory(own_database.redis_url, "wide", 400, dim=65_000)  # 52 MB
    url = httpx.URL(serve_api(own_database))
    before = _num_reads(own_database.redis_url)
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(f"GET /v1/memories/toy.wide/export HTTP/1.1\r\nHost: {url.host}\r\n\r\n".encode())
        assert _num_reads_when_still(own_database.redis_url, before) - before < 150


def _num_reads_when_still(redis_url, before):
    """Once a second has gone by without another read; a busy machine takes its time until then."""
    last = _num_reads(redis_url)
    for _ in range(60):
        time.sleep(1)
        now = _num_reads(redis_url)
        if now == last and now > before:
            return now
        last = now
    raise AssertionError("it is read on and on")


def _num_reads(redis_url):
    async def ask():
        redis = connect(redis_url)
        stats = await redis.info("commandstats")
        await redis.aclose()
        return stats.get("cmdstat_xrange", {"calls": 0})["calls"]

    return asyncio.run(ask())


def test_another_tenants_memories_and_imports_are_not_found(serve_api, own_database):
    """The same 404 as for what never was; the same import id is another import."""
    CASES.fill_memory(own_database.redis_url, "mine", 3, tenant="acme")

    async def make_keys():
        redis = connect(own_database.redis_url)
        made = [await KeyStore(redis).create(TenantId(tenant)) for tenant in ("acme", "other")]
        await redis.aclose()
        return made

    with httpx.Client(base_url=serve_api(own_database), timeout=60) as http:
        acme, other = ({"authorization": f"Bearer {key}"} for key in asyncio.run(make_keys()))
        assert http.get("/v1/memories/toy.mine/export", headers=acme).status_code == 200
        for path in ("/v1/memories/toy.mine/export", "/v1/memories/toy.none/export"):
            assert http.get(path, headers=other).status_code == 404
        archive = CASES.make_archive("theirs", range(1, 101), dim=4000)
        params = {"import_id": _id(6)}
        cut = {"content": archive[:-1], "params": params}
        assert http.post("/v1/memories/import", **cut, headers=acme | OCTETS).status_code == 400
        assert http.get(f"/v1/memories/import/{_id(6)}", headers=acme).status_code == 200
        assert http.get(f"/v1/memories/import/{_id(6)}", headers=other).status_code == 404
        whole = {"content": archive, "params": params}
        assert http.post("/v1/memories/import", **whole, headers=other | OCTETS).status_code == 200
        assert http.get("/v1/memories/toy.theirs", headers=acme).status_code == 404


@pytest.mark.usefixtures("worker")
def test_what_was_forgotten_stays_so(http):
    """Its bytes are not in the archive; versions that are no longer whole are 410 on both; the others give the same images."""
    for seed in range(1, 6):
        _generate(http, "holey", seed=seed)
    image_id = http.get("/v1/memories/toy.holey/entries").json()["data"][2]["image_id"]
    assert http.delete("/v1/memories/toy.holey/entries/3").status_code == 200
    _generate(http, "holey", seed=6)
    archive = _export(http, "holey").content
    assert image_id.encode() not in archive
    assert _import(http, archive, name="holey-too").json()["version"] == 7
    for version in range(8):
        asked = {"seed": 9, "reproducible": True, "version": version, "write": False}
        one, other = (_generate(http, name, **asked) for name in ("holey", "holey-too"))
        assert (one.status_code, other.status_code) == ((410, 410) if 3 <= version < 6 else (200, 200))
        if one.status_code == 200:
            assert _pixels(one) == _pixels(other), version
    assert _generate(http, "holey-too", seed=8).json()["memory_version"] == 7
    assert http.get("/v1/memories/toy.holey-too").json()["version"] == 8
    assert http.delete("/v1/memories/toy.holey-too").status_code == 200
    assert _import(http, archive, name="holey-too").json()["error"]["code"] == "memory_exists"


def _generate(http, name, *, seed, reproducible=False, **memory):
    diversity = {"strength": 1, "memory": {"name": name, **memory}}
    body = {"prompt": "a star", "seed": seed, "reproducible": reproducible, "diversity": diversity}
    return http.post("/v1/images/generations", json=body)


def _pixels(answer):
    png = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return Image.open(io.BytesIO(png)).tobytes()


def test_entries_are_what_they_were(http):
    """The bytes of a version, through the archive and back."""
    archive = CASES.make_archive("same", (2, 3, 7))
    assert _import(http, archive).status_code == 200
    assert CASES.make_entry(7) in _export(http, "same").content
    assert _export(http, "same").content == archive
