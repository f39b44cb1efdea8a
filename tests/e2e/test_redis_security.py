"""The service as users of Redis that may do no more than it does, over TLS: docs/redis-security.md is true."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import redis
import trustme
from acl_lines import acl_lines
from patience import PATIENCE_S, wait_until

ROOT = Path(__file__).resolve().parents[2]
WATCH = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("redis_watch.py"))))
API, WORKER = "sparke-api", "sparke-worker"
SELDOM = {
    API: {"bgrewriteaof", "ping", "select", "wait"},  # the document says when
    WORKER: {"del", "ping", "scan", "select", "wait", "xrevrange"},
}
TRIED = re.compile(r"^sparke_webhook_deliveries_total\{.*\} [1-9]", re.MULTILINE)
QUICK = {
    "SPARKE_SWEEP_INTERVAL_S": "0.3",
    "SPARKE_HEARTBEAT_INTERVAL_S": "0.5",
    "SPARKE_HEARTBEAT_TTL_S": "8",
    "SPARKE_WEBHOOKS_ALLOW_PRIVATE": "true",
    "SPARKE_REQUESTS_PER_MINUTE": "100000",
    "SPARKE_MAX_STORED_BYTES": "1000000000",
    "SPARKE_MAX_MEMORY_ENTRIES": "1000000",
}
PICTURE = (ROOT / "tests" / "app" / "http" / "archive_cases.py").with_name("test_fuzz.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def commands_of(words: Iterable[str]) -> set[str]:
    """The commands that lines give a user, without subcommands."""
    return {word[1:].partition("|")[0] for word in words if word.startswith("+")}


@dataclass
class Secured:
    """A running service: its URL, and what it runs on."""

    http: httpx.Client
    watcher: object
    admin: redis.Redis
    rights: dict[str, set[str]]
    restart_worker: Callable[[signal.Signals], None]


@contextmanager
def _process(command: str, user: str, env: dict[str, str], *more: str) -> Iterator[subprocess.Popen[str]]:
    line = [sys.executable, "-P", "-m", "app.cli", command, *more]
    url = env["URL"].replace("USER", user)
    with subprocess.Popen(
        line, env={**env, "SPARKE_REDIS_URL": url}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def _make_key(env: dict[str, str]) -> str:
    scopes = "generate,read,manage,admin"
    line = [sys.executable, "-P", "-m", "app.cli", "keys", "create", "--tenant", "acme", "--scopes", scopes]
    url = env["URL"].replace("USER", API)
    made = subprocess.run(
        line, env={**env, "SPARKE_REDIS_URL": url}, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, make_env_of) -> Iterator[Secured]:
    """The API and a worker with the toy engine, each as its own user, over TLS."""
    folder = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    with ExitStack() as stack:
        port = stack.enter_context(WATCH.running_server(folder))
        admin = stack.enter_context(redis.Redis(port=port, password=WATCH.ADMIN))
        lines = {user: acl_lines(user) for user in (API, WORKER)}
        for words in chain.from_iterable(lines.values()):
            admin.execute_command(*words)
        watcher = stack.enter_context(WATCH.Watcher(port))
        tls_port = stack.enter_context(WATCH.tls_before(port, authority))
        env = make_env_of(
            folder,
            URL=f"rediss://USER:secret@localhost:{tls_port}/0?ssl_ca_certs={folder / 'ca.pem'}",
            SPARKE_DATA_DIR=str(folder / "data"),
            SPARKE_PORT="0",
            **QUICK,
        )
        key = _make_key(env)
        api = stack.enter_context(_process("api", API, env))
        worker = stack.enter_context(ExitStack())
        workers = [worker.enter_context(_process("worker", WORKER, env))]
        assert api.stdout is not None
        url = api.stdout.readline().removeprefix("SPARKE API: ").strip()
        headers = {"authorization": f"Bearer {key}"}
        http = stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=60))

        def restart_worker(kind: signal.Signals) -> None:
            os.kill(workers[-1].pid, kind)
            workers[-1].wait(60)
            workers.append(worker.enter_context(_process("worker", WORKER, env)))

        wait_until(lambda: http.get("/readyz").status_code == 200, "no worker")
        rights = {user: commands_of(chain.from_iterable(its)) for user, its in lines.items()}
        yield Secured(http, watcher, admin, rights, restart_worker)


def _ok(answer: httpx.Response) -> dict:
    assert answer.status_code < 300, answer.text
    return answer.json()


def _make_and_follow(http: httpx.Client) -> None:
    asked = {"prompt": "a star", "n": 2, "response_format": "url"}
    made = _ok(http.post("/v1/images/generations", json=asked, headers={"idempotency-key": "one"}))
    assert httpx.get(made["data"][0]["url"], timeout=PATIENCE_S).status_code == 200
    replay = {"memory": {"version": made["memory_version"]}, "novelty": {"reference": "default", "weight": 1}}
    _ok(http.post("/v1/images/generations", json={"prompt": "a star", "diversity": replay}))
    job = _ok(http.post("/v1/jobs", json={"prompt": "a ring", "num_previews": 1, "steps": 50}))
    with http.stream("GET", f"/v1/jobs/{job['id']}/events") as events:
        assert "event: succeeded" in list(events.iter_lines())
    long = _ok(http.post("/v1/jobs", json={"prompt": "a ring", "steps": 10**6}))
    waiting = _ok(http.post("/v1/jobs", json={"prompt": "a ring", "steps": 10**6}))
    late = _ok(http.post("/v1/jobs", json={"prompt": "a ring", "steps": 9, "deadline_s": 1}))
    time.sleep(1.2)
    for each in (waiting, long):
        _ok(http.post(f"/v1/jobs/{each['id']}/cancel"))
    wait_until(lambda: _ok(http.get(f"/v1/jobs/{late['id']}"))["status"] == "expired", "not expired")
    assert len(_ok(http.get("/v1/jobs?status=succeeded&limit=2"))["data"]) == 2
    picture = runpy.run_path(str(PICTURE), run_name="cases")["PICTURE"]
    edit = http.post("/v1/images/edits", files={"image": ("a.png", picture)}, data={"prompt": "a star"})
    assert edit.status_code == 200, edit.text


def _batch(http: httpx.Client) -> None:
    line = {"method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a star"}}
    lines = [json.dumps({**line, "custom_id": str(number)}) for number in range(4)] + ["{"]
    form = {"file": ("a.jsonl", "\n".join(lines).encode()), "purpose": (None, "batch")}
    for cancels in (False, True):
        file_id = _ok(http.post("/v1/files", files=form))["id"]
        body = {"input_file_id": file_id, "endpoint": "/v1/images/generations", "completion_window": "24h"}
        batch = f"/v1/batches/{_ok(http.post('/v1/batches', json=body))['id']}"
        if cancels:
            http.post(f"{batch}/cancel")
        wait_until(
            lambda at=batch: _ok(http.get(at))["status"] in ("completed", "cancelled"), "no end of a batch"
        )
        _ok(http.get("/v1/batches"))
        assert len(_ok(http.get("/v1/files?limit=1&order=asc"))["data"]) == 1
        _ok(http.delete(f"/v1/files/{file_id}"))


def _fork_and_rename(http: httpx.Client) -> None:
    _ok(http.post("/v1/memories", json={"name": "told", "keep_prompts": True}))
    made = {"prompt": "a told star", "diversity": {"memory": {"name": "told"}}}
    _ok(http.post("/v1/images/generations", json=made))
    _ok(http.post("/v1/memories/toy.told/fork", json={"name": "trial"}))
    _ok(http.post("/v1/memories/toy.told/forget", json={"versions": [1]}))
    _ok(http.post("/v1/memories/toy.told/fork", json={"name": "later"}))
    _ok(http.patch("/v1/memories/toy.trial", json={"name": "kept"}))
    _ok(http.patch("/v1/memories/toy.kept", json={"keep_prompts": False}))
    _ok(http.post("/v1/memories/toy.kept/preview", json={"prompt": "a star"}))
    _ok(http.get("/v1/memories/toy.kept/stats"))
    for name in ("told", "kept", "later"):
        _ok(http.delete(f"/v1/memories/toy.{name}"))


def _remember_and_forget(http: httpx.Client) -> None:
    memory = "/v1/memories/toy.default"
    assert len(_ok(http.get("/v1/memories"))["data"]) == 1
    assert _ok(http.post(f"{memory}/search", json={"prompt": "a star"}))["data"]
    entries = _ok(http.get(f"{memory}/entries?limit=100"))["data"]
    archive = http.get(f"{memory}/export").content
    octets = {"content-type": "application/octet-stream"}
    cut = {"name": "half", "import_id": f"imp_{1:028x}"}
    assert (
        http.post("/v1/memories/import", content=archive[:-9], params=cut, headers=octets).status_code == 400
    )
    _ok(http.get(f"/v1/memories/import/imp_{1:028x}"))
    _ok(http.post("/v1/memories/import", content=archive, params={"name": "copy"}, headers=octets))
    _ok(http.patch(memory, json={"max_entries": max(2, len(entries) - 1)}))
    _ok(http.post(f"{memory}/forget", json={"versions": [entries[0]["version"]]}))
    _ok(http.post(f"{memory}/forget", json={"before": 1}))
    _ok(http.delete(f"{memory}/entries/{entries[1]['version']}"))
    _ok(http.post(f"{memory}/forget", json={"all": True}))
    _ok(http.delete("/v1/memories/toy.copy"))


def _administer(http: httpx.Client) -> None:
    _ok(http.get("/v1/usage"))
    made = _ok(http.post("/v1/admin/tenants/bolt/keys", json={}))
    own = {"authorization": f"Bearer {made['key']}"}
    _ok(http.put("/v1/admin/tenants/bolt/quotas", json={"images_per_day": 5}))
    _ok(http.post("/v1/images/generations", json={"prompt": "a star"}, headers=own))
    _ok(http.post("/v1/webhooks", json={"url": "http://127.0.0.1:9/"}, headers=own))
    _ok(http.put("/v1/admin/tenants/bolt/quotas", json={}))
    rotated = _ok(http.post(f"/v1/admin/keys/{made['id']}/rotate", json={}))
    _ok(http.delete(f"/v1/admin/keys/{rotated['id']}"))
    for path in ("tenants", "tenants/bolt", "tenants/bolt/usage", "tenants/bolt/keys", "audit"):
        _ok(http.get(f"/v1/admin/{path}"))
    _ok(http.delete("/v1/admin/tenants/bolt"))
    deletion = "/v1/admin/tenants/bolt"
    wait_until(lambda: _ok(http.get(deletion))["deletion"]["state"] == "watching", "not erased")
    assert http.get("/metrics").status_code == 200


def _hook(http: httpx.Client) -> None:
    hook = f"/v1/webhooks/{_ok(http.post('/v1/webhooks', json={'url': 'http://127.0.0.1:9/'}))['id']}"
    _ok(http.get("/v1/webhooks"))
    _ok(http.post(f"{hook}/rotate"))
    _ok(http.post(f"{hook}/enable"))
    _ok(http.post("/v1/images/generations", json={"prompt": "a hook"}))
    wait_until(lambda: TRIED.search(http.get("/metrics").text), "its deliverer does not try, in vain")
    _ok(http.delete(hook))


def _unused(secured: Secured, user: str) -> set[str]:
    return secured.rights[user] - secured.watcher.used_by(user) - SELDOM[user]


def test_the_service_runs_as_these_users_over_tls(secured: Secured):
    """Whatever it does, after a killed worker too; nothing is denied, and each has used all that it may and no more."""
    http = secured.http
    _hook(http)
    _make_and_follow(http)
    _batch(http)
    job = _ok(http.post("/v1/jobs", json={"prompt": "a ring", "steps": 20_000}))
    wait_until(lambda: _ok(http.get(f"/v1/jobs/{job['id']}"))["status"] == "running", "not running")
    secured.restart_worker(signal.SIGKILL)
    wait_until(lambda: _ok(http.get(f"/v1/jobs/{job['id']}"))["status"] == "succeeded", "not taken over")
    _fork_and_rename(http)
    _remember_and_forget(http)
    _administer(http)
    secured.restart_worker(signal.SIGTERM)
    time.sleep(0.5)  # for what must not follow
    assert [each["object"] for each in secured.admin.acl_log()] == []
    for user in (API, WORKER):
        with suppress(AssertionError):  # the last line says what is missing
            wait_until(lambda user=user: not _unused(secured, user))
        assert (user, secured.watcher.used_by(user) - secured.rights[user]) == (user, set())
        assert (user, _unused(secured, user)) == (user, set())
