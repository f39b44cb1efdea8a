"""Whatever stands where an id, a name or a path belongs: no fault, no key and no file that is not the tenant's own."""

import asyncio
import copy
import re
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import httpx
import pytest
from patience import PATIENCE_S

from app.domain.ids import ImageId, TenantId, image_id, make_job_id
from app.domain.scope import Scope
from app.images.urls import SigningKeyStore, UrlSigner
from app.redis.connection import connect
from app.tenants.keys import KeyStore, KeyWish

HOSTILE = (
    "../../../etc/passwd",
    "..",
    "a/../../b",
    "%2e%2e%2f",
    "}",
    "{t:other}",
    "acme}:{t:other",
    "a:b",
    "a\nb",
    "a\r\nx-injected: 1",
    "a\0b",
    "*",
    "[a-z]?",
    "\N{LATIN SMALL LIGATURE FI}le\N{RIGHT-TO-LEFT OVERRIDE}",
    "\N{FULLWIDTH LATIN CAPITAL LETTER A}cme",
    "\ud7ff\uffff",
    "$(id)",
    "x" * 10_000,
)
SAFE_KEY = re.compile(r"sparke:[A-Za-z0-9:{}._-]+")
KNOWN_MODELS = {"toy", "unserved"}


async def _prepare(redis_url: str) -> tuple[list[str], UrlSigner]:
    redis = connect(redis_url)
    try:
        wish = KeyWish(scopes=tuple(Scope))
        keys = [(await KeyStore(redis).issue(TenantId(name), wish)).key for name in ("acme", "bolt")]
        return keys, UrlSigner(await SigningKeyStore(redis).get_or_create())
    finally:
        await redis.aclose()


class Scene:
    """An API over a database of its own, clients of two tenants, and what signs URLs."""

    def __init__(self, url, own_database):
        (acme, bolt), self.signer = asyncio.run(_prepare(own_database.redis_url))
        self.settings = own_database
        self.acme, self.bolt = (
            httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60)
            for key in (acme, bolt)
        )

    async def keys(self) -> list[str]:
        """Every key that there is."""
        redis = connect(self.settings.redis_url)
        try:
            return [key.decode("latin-1") async for key in redis.scan_iter()]  # a test may look everywhere
        finally:
            await redis.aclose()


@pytest.fixture
def scene(serve_api, own_database) -> Iterator[Scene]:
    """With no worker, which nobody waits for."""
    own = own_database.model_copy(update={"no_worker_grace_s": 0, "webhooks_allow_private": True})
    found = Scene(serve_api(own), own)
    yield found
    found.acme.close()
    found.bolt.close()


def _strings(schema: dict, components: dict, depth: int = 0) -> Iterator[tuple[str, ...]]:
    """Where a body of a schema may hold a text, by the names of the members on the way."""
    if "$ref" in schema:
        schema = components[schema["$ref"].rpartition("/")[2]]
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _strings(choice, components, depth)
    if schema.get("type") == "string":
        yield ()
    if schema.get("type") == "array" and depth < 5:
        yield from (("0", *rest) for rest in _strings(schema["items"], components, depth + 1))
    for name, member in schema.get("properties", {}).items() if depth < 5 else ():
        yield from ((name, *rest) for rest in _strings(member, components, depth + 1))


def _set(body: object, place: tuple[str, ...], value: str) -> object:
    """A copy of a body with the value at a place."""
    if not place:
        return value
    name, *rest = place
    if name == "0":
        return [_set(None, tuple(rest), value)]
    copied = dict(copy.deepcopy(body)) if isinstance(body, dict) else {}
    copied[name] = _set(copied.get(name), tuple(rest), value)
    return copied


def _requests(document: dict) -> Iterator[tuple[str, str, dict]]:
    """Every operation with every hostile value in each place that takes a text; the other places hold something usual."""
    components = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            usual = re.sub(r"\{\w+\}", "x", path)
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            example = None if content is None else next(iter(content["examples"].values()))["value"]
            for name in re.findall(r"\{(\w+)\}", path):
                for value in HOSTILE:
                    at = re.sub(r"\{\w+\}", "x", path.replace(f"{{{name}}}", quote(value, safe="")))
                    yield method, at, {} if example is None else {"json": example}
            for number, member in enumerate(operation.get("parameters", ())):
                if member["in"] == "query":
                    some = HOSTILE[number % 3 :: 3]
                    yield from ((method, usual, {"params": {member["name"]: value}}) for value in some)
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is not None:
                example = next(iter(content["examples"].values()))["value"]
                for place in sorted(set(_strings(content["schema"], components))):
                    yield from ((method, usual, {"json": _set(example, place, value)}) for value in HOSTILE)


def _assert_keys_are_its_own(keys: list[str]) -> None:
    assert any(key.startswith("sparke:{t:acme}:") for key in keys)
    for key in keys:
        assert SAFE_KEY.fullmatch(key), key
        kind, _, tag = (re.search(r"\{(.*?)\}", key) or [""])[0].strip("{}").partition(":")
        assert kind in ("", "t", "m", "workers"), key
        assert kind != "t" or tag in ("acme", "bolt", "default"), key
        assert kind != "m" or tag in KNOWN_MODELS, key


def test_nothing_hostile_makes_a_key_a_file_or_a_fault(scene: Scene):
    """Each text of each operation, over HTTP: no 5xx but for the worker that is not there, nothing outside the tenant's own."""
    around = scene.settings.data_dir.parent
    before = set(around.iterdir())
    document = scene.acme.get("/openapi.json").json()
    num_sent, found = 0, set()
    for method, path, members in _requests(document):
        if path.startswith(("/metrics", "/readyz")):
            continue
        answer = scene.acme.request(method, path, **members)
        code = answer.json()["error"]["code"] if answer.status_code >= 400 else ""
        found.add((answer.status_code, code))
        assert answer.status_code < 500 or code in ("no_worker", "queue_full"), (method, path[:80], members)
        assert "x-injected" not in answer.headers
        assert answer.status_code >= 400 or "%" not in path, (
            method,
            path[:80],
        )  # no such thing is ever there
        num_sent += 1
    assert num_sent > 700
    assert {(404, "not_found"), (400, "invalid_id"), (400, "invalid_value")} <= found
    form = {"file": ("../../{t:other}\0.jsonl", b"{}"), "purpose": (None, "batch")}
    named = scene.acme.post("/v1/files", files=form).json()["filename"]
    assert not set(named) & set("/\\\0")
    for header in ("../../x", "acme}:{t:other", "x" * 200):
        asked = {"model": "unserved", "prompt": "x"}
        answer = scene.acme.post("/v1/jobs", json=asked, headers={"idempotency-key": header})
        assert answer.status_code in (202, 429), answer.text
    _assert_keys_are_its_own(asyncio.run(scene.keys()))
    assert set(around.iterdir()) == before
    assert {path.name for path in scene.settings.data_dir.glob("files/*/*")} <= {"acme", "default", "bolt"}


@pytest.mark.parametrize(
    "path",
    [
        "/docs/../../../etc/passwd",
        "/docs/..%2f..%2f..%2fetc%2fpasswd",
        "/docs/%2e%2e/%2e%2e/main.py",
        "/docs/swagger-ui.js/../../../core.py",
        "//etc/passwd",
        "/v1/files/..%2f..%2fredis%2furl/content",
    ],
)
def test_no_path_leads_out(http: httpx.Client, path: str):
    """As it is written, without a client that straightens it out."""
    request = httpx.Request("GET", http.base_url)
    request.url = request.url.copy_with(raw_path=path.encode())
    answer = http.send(request)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_a_signed_url_is_bound_to_all_that_it_names(scene: Scene):
    """Genuine, it leads to an image that is not there; with the tenant, image, expiry or signature altered it leads nowhere."""
    found = image_id(make_job_id(1_700_000_000_000, b"12345678"), 0)
    expires_s = 4_000_000_000
    signature = scene.signer.sign(TenantId("acme"), ImageId(found), expires_s)
    genuine = {"tenant": "acme", "expires": expires_s, "signature": signature}
    assert (
        httpx.get(f"{scene.acme.base_url}/v1/images/{found}", params=genuine, timeout=PATIENCE_S).status_code
        == 404
    )
    other = image_id(make_job_id(1_700_000_000_000, b"12345678"), 1)
    past_s = 1_700_000_000
    expired = {**genuine, "expires": past_s}
    expired["signature"] = scene.signer.sign(TenantId("acme"), ImageId(found), past_s)
    swapped = signature[:-2] + signature[-2:].swapcase()
    for image, members in (
        (found, {**genuine, "tenant": "bolt"}),
        (other, genuine),
        (found, {**genuine, "expires": expires_s + 1}),
        (found, {**genuine, "signature": swapped if swapped != signature else "A" * 43}),
        (found, {**genuine, "signature": ""}),
        (found, {**genuine, "signature": "é" * 43}),
        (found, expired),
    ):
        answer = httpx.get(f"{scene.acme.base_url}/v1/images/{image}", params=members, timeout=PATIENCE_S)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden"), members
        assert answer.headers["cache-control"] == "no-store"


def _made(http: httpx.Client) -> dict[str, tuple[str, str]]:
    """Something of each kind that is named by an id, and an id of the same form that nothing has."""
    line = b'{"custom_id": "1", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "x"}}'
    form = {"file": ("a.jsonl", line), "purpose": (None, "batch")}
    file_id = http.post("/v1/files", files=form).json()["id"]
    batch = {"input_file_id": file_id, "endpoint": "/v1/images/generations", "completion_window": "24h"}
    ids = {
        "job_id": http.post("/v1/jobs", json={"model": "unserved", "prompt": "x"}).json()["id"],
        "file_id": file_id,
        "batch_id": http.post("/v1/batches", json=batch).json()["id"],
        "webhook_id": http.post("/v1/webhooks", json={"url": "http://127.0.0.1:9/"}).json()["id"],
    }
    return {
        name: (found, found[:-4] + ("0000" if found[-4:] != "0000" else "1111"))
        for name, found in ids.items()
    }


def test_what_is_anothers_is_answered_as_what_is_not_there(scene: Scene):
    """By every operation that names it: the same status, headers and words, so nobody learns which ids there are."""
    ids = _made(scene.acme)
    document = scene.bolt.get("/openapi.json").json()
    num_compared = 0
    for path, operations in document["paths"].items():
        names = re.findall(r"\{(\w+)\}", path)
        if len(names) != 1 or names[0] not in ids or "/admin/" in path:
            continue
        for method in operations:
            told = []
            for each in ids[names[0]]:
                answer = scene.bolt.request(method, path.replace(f"{{{names[0]}}}", each))
                body = {**answer.json(), "instance": None}
                told.append((answer.status_code, sorted(answer.headers), str(body).replace(each, "ID")))
            assert told[0] == told[1], (method, path)
            assert told[0][0] == 404
            num_compared += 1
    assert num_compared >= 10
    asked = {
        "input_file_id": ids["file_id"][0],
        "endpoint": "/v1/images/generations",
        "completion_window": "24h",
    }
    own, none = (
        scene.bolt.post("/v1/batches", json={**asked, "input_file_id": each}) for each in ids["file_id"]
    )
    assert own.status_code == none.status_code
    assert own.json()["error"]["code"] == none.json()["error"]["code"]
    assert urlsplit(str(own.url)).path == "/v1/batches"
