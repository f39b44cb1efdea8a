"""Tenants send each other's ids, everywhere: what is another's is answered as what never was, and stays as it is."""

import hashlib
import json
import random
import re
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S

Ids = dict[str, str]
Sent = dict[str, Any]

ENDPOINT = "/v1/images/generations"
NOBODY = "http://127.0.0.1:9/"  # where a webhook finds no receiver
UNCOMPARED = ("date", "x-request-id", "content-length")
SIGNED = re.compile(r'\?tenant=[^"]*')
NO_IDS = {  # neither a path nor a body of theirs has the id of anything that is a tenant's
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model_id}"),
    ("GET", "/v1/usage"),
    ("GET", "/v1/webhooks"),
    ("POST", "/v1/webhooks"),
    ("POST", "/v1/files"),
    ("POST", "/v1/images/edits"),
    ("POST", "/v1/references"),
    ("POST", "/v1/jobs"),
    ("POST", "/v1/memories"),
    ("GET", "/v1/admin/tenants"),
    ("GET", "/v1/admin/audit"),
}


def _batch_of(ids: Ids) -> Sent:
    body = {"input_file_id": ids["file_id"], "endpoint": ENDPOINT, "completion_window": "24h"}
    return {"json": body}


def _reference(member: str) -> Callable[[Ids], Sent]:
    def send(ids: Ids) -> Sent:
        named = {member: {"reference": ids["memory_id"].partition(".")[2], "weight": 1}}
        return {"json": {"prompt": "a star", "diversity": named}}

    return send


BODIES: dict[tuple[str, str], list[Callable[[Ids], Sent]]] = {
    ("POST", ENDPOINT): [_reference("novelty"), _reference("context")],
    ("POST", "/v1/batches"): [_batch_of],
    ("GET", "/v1/jobs"): [lambda ids: {"params": {"after": ids["job_id"]}}],
    ("GET", "/v1/files"): [lambda ids: {"params": {"after": ids["file_id"]}}],
    ("GET", "/v1/batches"): [lambda ids: {"params": {"after": ids["batch_id"]}}],
    ("GET", "/v1/memories"): [lambda ids: {"params": {"after": ids["memory_id"]}}],
    ("GET", "/v1/images/{image_id}"): [
        lambda ids: {"params": ids["query of an image"]},
        lambda ids: {"params": ids["query of another's image"]},
    ],
    ("GET", "/v1/jobs/{job_id}/events"): [lambda _: {}, lambda _: {"headers": {"last-event-id": "1-0"}}],
    ("POST", "/v1/memories/{memory_id}/forget"): [
        lambda ids: {"json": {"images": [ids["entry"]]}},
        lambda ids: {"json": {"images": [ids["entry"]], "everywhere": True}},
        lambda _: {"json": {"all": True}},
        lambda _: {"json": {"like": {"prompt": "a star", "min_similarity": 0.5}}},
    ],
    ("POST", "/v1/memories/{memory_id}/fork"): [lambda _: {"json": {"name": "mine"}}],
    ("PATCH", "/v1/memories/{memory_id}"): [
        lambda _: {"json": {"frozen": True}},
        lambda _: {"json": {"keep_prompts": False}},
        lambda _: {"json": {"name": "mine"}},
    ],
    ("POST", "/v1/memories/{memory_id}/search"): [lambda _: {"json": {"prompt": "a star"}}],
    ("POST", "/v1/memories/{memory_id}/preview"): [lambda _: {"json": {"prompt": "a star"}}],
    ("POST", "/v1/memories/import"): [
        lambda ids: {"params": {"import_id": ids["import_id"]}, "content": b"x"}
    ],
    ("PUT", "/v1/admin/tenants/{tenant_id}/quotas"): [lambda _: {"json": {"images_per_day": 0}}],
}


@dataclass
class Tenant:
    """One tenant: its client, the word that all of its data have and no other's, and an id of each kind."""

    name: str
    secret: str
    http: httpx.Client
    ids: Ids = field(default_factory=dict)


@dataclass(frozen=True)
class Town:
    """A service, all of its tenants, and the operations that its document names."""

    url: str
    tenants: Sequence[Tenant]
    operations: Sequence[tuple[str, str]]


def _word(generator: random.Random) -> str:
    return "".join(generator.choices(string.ascii_lowercase, k=14))


def _hex(generator: random.Random, digits: int) -> str:
    return f"{generator.getrandbits(4 * digits):0{digits}x}"


def _nobodys(generator: random.Random, like: Tenant) -> Ids:
    """Ids of the forms and times that a tenant's have, of nothing that is there: as cursors they are the same place."""

    def anew(name: str) -> str:
        kept, digits = re.fullmatch(r"(.+)([0-9a-f]{10})", like.ids[name]).groups()
        return f"{kept}{_hex(generator, len(digits))}"

    job_id = anew("job_id")
    return {
        "job_id": job_id,
        "image_id": f"{job_id}-0",
        "entry": f"{job_id}-0",
        "file_id": anew("file_id"),
        "batch_id": anew("batch_id"),
        "webhook_id": anew("webhook_id"),
        "memory_id": f"toy.{like.secret[:-1]}{generator.choice('0123456789')}",
        "import_id": f"imp_{_hex(generator, 28)}",
        "key_id": _hex(generator, len(like.ids["key_id"])),
        "tenant_id": _word(generator)[: len(like.name)].ljust(len(like.name), "x"),
    }


def _settle(tenant: Tenant, path: str, ended: str) -> dict[str, Any]:
    while (found := tenant.http.get(path).json())["status"] != ended:
        time.sleep(0.05)
        assert found["status"] not in {"failed", "expired", "cancelled"}, found
    return dict(found)


def _furnish(tenant: Tenant, generator: random.Random) -> None:
    """Gives a tenant one of everything."""
    http, secret = tenant.http, tenant.secret
    memory = {"diversity": {"memory": {"name": secret}}}
    job_id = http.post("/v1/jobs", json={"prompt": f"a {secret}", **memory}).raise_for_status().json()["id"]
    image = _settle(tenant, f"/v1/jobs/{job_id}", "succeeded")["result"]["data"][0]
    body = {"prompt": f"another {secret}", "diversity": {"memory": {"name": "default"}}}
    http.post(ENDPOINT, json=body).raise_for_status()
    line = {"custom_id": secret, "method": "POST", "url": ENDPOINT, "body": {"prompt": f"a {secret} line"}}
    file = {"file": (f"{secret}.jsonl", json.dumps(line).encode()), "purpose": (None, "batch")}
    file_id = http.post("/v1/files", files=file).raise_for_status().json()["id"]
    batch = http.post("/v1/batches", **_batch_of({"file_id": file_id})).raise_for_status().json()
    _settle(tenant, f"/v1/batches/{batch['id']}", "completed")
    hook = http.post("/v1/webhooks", json={"url": f"{NOBODY}{secret}"}).raise_for_status()
    archive = http.get(f"/v1/memories/toy.{secret}/export").raise_for_status().content
    import_id = f"imp_{_hex(generator, 28)}"
    sent = {"params": {"import_id": import_id, "name": f"{secret}-too"}, "content": archive}
    octets = {"content-type": "application/octet-stream"}
    http.post("/v1/memories/import", **sent, headers=octets).raise_for_status()
    url = httpx.URL(image["url"])
    tenant.ids |= {
        "job_id": job_id,
        "image_id": image["id"],
        "entry": image["id"],
        "file_id": file_id,
        "batch_id": batch["id"],
        "webhook_id": hook.json()["id"],
        "memory_id": f"toy.{secret}",
        "import_id": import_id,
        "tenant_id": tenant.name,
        "query of an image": url.query.decode(),
    }


@contextmanager
def _built(service: Any, data_dir: Path, num_tenants: int, seed: int) -> Iterator[Town]:
    """A service with tenants that have one of everything."""
    generator = random.Random(seed)
    command = [sys.executable, "-P", "-m", "app.cli", "keys", "create", "--tenant", "operator"]
    made = subprocess.run(
        [*command, "--scopes", "admin,read", "--data-dir", str(data_dir)],
        capture_output=True,
        text=True,
        check=True,
    )
    with ExitStack() as stack:

        def client(key: str) -> httpx.Client:
            return stack.enter_context(
                httpx.Client(base_url=service.url, headers={"authorization": f"Bearer {key}"}, timeout=60)
            )

        admin, tenants = client(made.stdout.strip()), []
        for number in range(num_tenants):
            name = f"tenant-{number:03d}"
            key = admin.post(f"/v1/admin/tenants/{name}/keys", json={}).raise_for_status().json()
            tenants.append(Tenant(name, _word(generator), client(key["key"]), {"key_id": key["id"]}))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda tenant: _furnish(tenant, random.Random(f"{seed} {tenant.name}")), tenants))
        document = admin.get("/openapi.json").json()["paths"]
        operations = {(method.upper(), path) for path, each in document.items() for method in each}
        yield Town(service.url, tenants, sorted(operations - NO_IDS))


def _ask(tenant: Tenant, operation: tuple[str, str], ids: Ids, choice: int) -> httpx.Response:
    method, path = operation
    bodies = BODIES.get(operation, [lambda _: {}])
    sent = bodies[choice % len(bodies)](ids)
    return tenant.http.request(method, path.format_map(ids), **sent)


def _normal(answer: httpx.Response, ids: Ids) -> tuple[Any, ...]:
    """An answer without what tells only which id was asked for, and when."""
    headers = {
        name: value
        for name, value in answer.headers.items()
        if name not in UNCOMPARED and not name.startswith("x-ratelimit-")
    }
    text = SIGNED.sub("", answer.text).replace(answer.headers["x-request-id"], "<request>")
    for name, value in ids.items():
        text = text.replace(value, f"<{name}>")
        text = text.replace(value.partition(".")[2] or value, f"<{name}>")
    return answer.status_code, headers, text


def _intrude(town: Town, intruder: Tenant, victim: Tenant, case: tuple[tuple[str, str], int, Ids]) -> None:
    """Sends the victim's ids, then ids of nothing: the same refusal, and not a byte of the victim's."""
    operation, choice, unknown = case
    own, theirs = intruder.ids["query of an image"], victim.ids["query of an image"]
    queries = {
        "query of an image": own,
        "query of another's image": theirs.replace(f"tenant={victim.name}", f"tenant={intruder.name}"),
    }
    answer, other = (_ask(intruder, operation, ids | queries, choice) for ids in (victim.ids, unknown))
    where = f"{operation} {choice}: {answer.status_code} {answer.text[:500]}"
    is_list = operation[0] == "GET" and "{" not in operation[1]
    assert answer.is_client_error or is_list, where
    for tenant in town.tenants:
        if tenant is not intruder:
            found = (answer.text + str(answer.headers)).replace(victim.ids["memory_id"], "<asked for>")
            assert tenant.secret not in found.replace(f"'{victim.secret}'", "<asked for>"), where
    assert _normal(answer, victim.ids) == _normal(other, unknown), where


def _view(tenant: Tenant) -> str:
    """All that a tenant sees of its own, images too; signatures of URLs, which are new each time, left out."""
    http = tenant.http
    jobs = http.get("/v1/jobs", params={"limit": 100}).raise_for_status().json()["data"]
    texts = [
        json.dumps([job for job in jobs if job["status"] != "failed"])
    ]  # it asked for others' references
    own = (tenant.secret, f"{tenant.secret}-too", "default")
    paths = (
        *(f"/v1/{kind}?limit=100" for kind in ("files", "batches", "memories")),
        "/v1/webhooks",
        *(f"/v1/memories/toy.{name}/entries" for name in own),
        f"/v1/jobs/{tenant.ids['job_id']}/events",
        f"/v1/files/{tenant.ids['file_id']}/content",
    )
    texts += [http.get(path).raise_for_status().text for path in paths]
    urls = re.findall(r'"image_url":"([^"]+)"', "".join(texts))
    assert urls, "there are images to look at"
    texts += [
        hashlib.sha256(httpx.get(url, timeout=PATIENCE_S).raise_for_status().content).hexdigest()
        for url in urls
    ]
    return SIGNED.sub("", "\n".join(texts))


def _check_views(town: Town, before: Sequence[str]) -> None:
    after = list(map(_view, town.tenants))
    assert after == list(before), "somebody's own has changed"
    for tenant, view in zip(town.tenants, after, strict=True):
        assert tenant.secret in view, "the view shows what is there"
        for other in town.tenants:
            assert other is tenant or other.secret not in view


@pytest.fixture(scope="module")
def town(start_for_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """A service with five tenants."""
    data_dir = tmp_path_factory.mktemp("town") / "data"
    service = start_for_module(data_dir, SPARKE_WEBHOOKS_ALLOW_PRIVATE="true")
    with _built(service, data_dir, 5, 26) as town:
        yield town


def test_every_operation_takes_part(town: Town) -> None:
    """An operation has an id in its path, or a body here that has one, or is named as one without any."""
    missing = [one for one in town.operations if "{" not in one[1] and one not in BODIES]
    assert missing == [], "say in BODIES where it takes ids, or name it in NO_IDS"


def test_no_id_of_anothers_opens_anything(town: Town) -> None:
    """Any tenant, any other, any operation, and ids at random in place of those that it takes: as if they were nobody's."""
    before = list(map(_view, town.tenants))
    pairs = st.permutations(town.tenants).map(lambda tenants: tenants[:2])

    @settings(
        max_examples=150,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(pairs, st.sampled_from(town.operations), st.integers(0, 3), st.randoms(use_true_random=False))
    def check(pair: list[Tenant], operation: tuple[str, str], choice: int, generator: random.Random) -> None:
        intruder, victim = pair
        _intrude(town, intruder, victim, (operation, choice, _nobodys(generator, victim)))

    check()
    _check_views(town, before)


@pytest.mark.slow
def test_fifty_tenants_at_once(start: Any, tmp_path: Path) -> None:
    """Each of fifty tenants sends ids of others to every operation, all at the same time."""
    service = start(tmp_path / "data", SPARKE_WEBHOOKS_ALLOW_PRIVATE="true")
    with _built(service, tmp_path / "data", 50, 27) as town:
        before = list(map(_view, town.tenants))
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda number: _roam(town, number), range(len(town.tenants))))
        _check_views(town, before)


def _roam(town: Town, number: int) -> None:
    generator, intruder = random.Random(f"roam {number}"), town.tenants[number]
    others = [tenant for tenant in town.tenants if tenant is not intruder]
    for operation in generator.sample(town.operations, len(town.operations)):
        for choice in range(len(BODIES.get(operation, "1"))):
            victim = generator.choice(others)
            _intrude(town, intruder, victim, (operation, choice, _nobodys(generator, victim)))
