"""The audit log over HTTP: which requests are acts, what is told of each, and who may read it."""

import asyncio
import runpy
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from patience import PATIENCE_S

from app.domain.scope import Scope
from app.http.guard.auditing import ACTS
from app.http.guard.scopes import NEEDED
from app.redis.connection import connect

AUDIT = "/v1/admin/audit"
OCTETS = {"content-type": "application/octet-stream"}
ARCHIVES = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("archive_cases.py"))))
PROMPT = "a very secret prompt"


@pytest.fixture
def url(serve_api, own_database):
    """An API whose database holds nothing."""
    return serve_api(own_database.model_copy(update={"webhooks_allow_private": True}))


@pytest.fixture
def admin(url, own_database, issue_key):
    """A client with a key for administration alone."""
    key = issue_key(own_database.redis_url, "ops", Scope.ADMIN)
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S) as client:
        client.key_id = key.split("-")[2]
        yield client


@pytest.fixture
def tenant(url, own_database, issue_key):
    """A client of a tenant's own."""
    key = issue_key(own_database.redis_url, "acme", Scope.READ, Scope.MANAGE, Scope.GENERATE)
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S) as client:
        client.key_id = key.split("-")[2]
        yield client


def _read(admin, journal="admin", **query):
    answer = admin.get(AUDIT, params={"journal": journal, "order": "asc", "limit": 100, **query})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def _outcomes(records):
    return [(each["act"], each["outcome"]) for each in records]


def test_every_route_that_manages_or_administers_is_an_act():
    """All of these scopes that change something, and exports; no act is of a route that is none."""
    changing = {
        place for place, scope in NEEDED.items() if scope in (Scope.MANAGE, Scope.ADMIN) and place[0] != "GET"
    }
    assert changing - set(ACTS) == set()
    assert set(ACTS) - changing == {("GET", "/v1/memories/{memory_id}/export")}
    assert set(ACTS) <= set(NEEDED)


def test_what_administrators_do_is_told(admin):
    """Who by the key's id, what, on whom, the new key's id, and the request's; never a key."""
    made = admin.post("/v1/admin/tenants/acme/keys", json={"name": "ci", "scopes": ["read"]}).json()
    rotated = admin.post(f"/v1/admin/keys/{made['id']}/rotate", json={}).json()
    request_id = admin.delete(f"/v1/admin/keys/{made['id']}").headers["x-request-id"]
    admin.put("/v1/admin/tenants/acme/quotas", json={"images_per_day": 5})
    admin.delete("/v1/admin/tenants/acme")
    records = _read(admin)
    acts = ("key.create", "key.rotate", "key.revoke", "tenant.quotas", "tenant.delete")
    assert _outcomes(records) == [(act, outcome) for act in acts for outcome in ("begun", "done")]
    assert {(each["actor"], each["actor_tenant"]) for each in records} == {(admin.key_id, "ops")}
    create, rotate, revoke, quotas, delete = records[1::2]
    assert (create["tenant_id"], create["facts"]["new_key"]) == ("acme", made["id"])
    assert (rotate["target"], rotate["facts"]["new_key"]) == (made["id"], rotated["id"])
    assert (revoke["target"], revoke["facts"], revoke["request_id"]) == (
        made["id"],
        {"key_tenant": "acme"},
        request_id,
    )
    assert quotas["facts"] == {"images_per_day": 5}
    assert (delete["tenant_id"], delete["facts"]) == ("acme", {"num_keys": 2})
    assert "sk-sparke" not in str(records)


def test_what_tenants_do_is_told_in_a_journal_of_its_own(admin, tenant):
    """Webhooks by their ids, memories by theirs, entries by their number; no URL, no secret, no prompt."""
    hook = tenant.post("/v1/webhooks", json={"url": "http://127.0.0.1:9/token"}).json()
    tenant.post(f"/v1/webhooks/{hook['id']}/rotate")
    archive = ARCHIVES.make_archive("kept", (1, 2, 3))
    memory = tenant.post("/v1/memories/import", content=archive, headers=OCTETS).json()["memory_id"]
    assert tenant.get(f"/v1/memories/{memory}/export").status_code == 200
    tenant.patch(f"/v1/memories/{memory}", json={"frozen": True, "max_entries": 9, "keep_prompts": False})
    everywhere = {"images": [f"job_{0:012x}{1:016x}-0"], "everywhere": True}
    assert tenant.post(f"/v1/memories/{memory}/forget", json=everywhere).status_code == 200
    tenant.post(f"/v1/memories/{memory}/forget", json={"versions": [1]})
    tenant.delete(f"/v1/memories/{memory}")
    records = _read(admin, "tenants")
    assert {(each["actor"], each["tenant_id"]) for each in records} == {(tenant.key_id, "acme")}
    done = {each["act"]: each for each in records if each["outcome"] == "done"}
    assert done["webhook.create"]["facts"] == {"webhook": hook["id"]}
    assert done["webhook.rotate"]["target"] == hook["id"]
    assert done["memory.import"]["facts"] == {"memory": memory, "num_entries": 3}
    wide, narrow = [each for each in records if (each["act"], each["outcome"]) == ("memory.forget", "done")]
    assert wide["facts"] == {"num_entries": 0, "where": "everywhere"}
    assert narrow["facts"] == {"num_entries": 1}
    assert done["memory.shape"]["facts"] == {"frozen": 1, "max_entries": 9, "keep_prompts": "none"}
    assert (done["memory.delete"]["target"], done["memory.delete"]["facts"]) == (memory, {"num_entries": 2})
    assert "memory.export" in done
    assert not any(word in str(records) for word in ("token", hook["secret"], "127.0.0.1"))
    assert _read(admin) == []


def test_refused_attempts_are_told(admin, tenant, url):
    """Without a key, with one that does not work, by its id, and with one that may not; looking is an attempt too."""
    httpx.delete(f"{url}/v1/admin/tenants/acme", timeout=PATIENCE_S)
    wrong = "sk-sparke-0badf00d-" + "x" * 43
    httpx.get(f"{url}/v1/admin/tenants", headers={"authorization": f"Bearer {wrong}"}, timeout=PATIENCE_S)
    tenant.post("/v1/admin/tenants/acme/keys", json={"scopes": ["admin"]})
    tenant.get("/v1/admin/keys")  # no route: nothing to attempt
    first, second, third = _read(admin, "refused")
    assert (first["act"], first["actor"], first["code"], first["tenant_id"]) == (
        "tenant.delete",
        "none",
        "invalid_api_key",
        "acme",
    )
    assert (second["act"], second["facts"]) == ("admin.read", {"claimed_key": "0badf00d"})
    assert (third["actor"], third["actor_tenant"], third["code"]) == (
        tenant.key_id,
        "acme",
        "permission_error",
    )
    assert "xxxx" not in str([first, second, third])


def test_a_fault_of_the_request_is_told_as_it_ended(admin):
    """Begun, and refused with its status; what a path has in an id's place is repeated only if it could be one."""
    secret = "sk-sparke-01234567-" + "y" * 43
    for path in ("00000000", secret, "a%20portrait"):
        assert admin.delete(f"/v1/admin/keys/{path}").status_code == 404
    assert admin.put("/v1/admin/tenants/ops/quotas", json={"images": 1}).status_code == 400
    ended = [each for each in _read(admin) if each["outcome"] != "begun"]
    assert [(each["target"], each["outcome"], each["code"]) for each in ended] == [
        ("00000000", "refused", "404"),
        ("malformed", "refused", "404"),
        ("malformed", "refused", "404"),
        (None, "refused", "400"),
    ]


def test_records_outlive_their_tenant(admin, tenant):
    """What a tenant did is still told when its deletion was asked for, and that it was."""
    tenant.post("/v1/webhooks", json={"url": "http://127.0.0.1:9/"})
    admin.delete("/v1/admin/tenants/acme")
    assert _outcomes(_read(admin, "tenants")) == [("webhook.create", "begun"), ("webhook.create", "done")]
    assert _read(admin)[-1]["tenant_id"] == "acme"


def test_the_log_is_read_by_cursor_by_administrators_alone(admin, tenant):
    """The newest first; a cursor is the id of the last one; another form of one is refused."""
    for name in ("a", "b", "c"):
        admin.post(f"/v1/admin/tenants/{name}/keys", json={})
    first = admin.get(AUDIT, params={"limit": 4}).json()
    rest = admin.get(AUDIT, params={"limit": 4, "after": first["last_id"]}).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    seen = [each["tenant_id"] for each in first["data"] + rest["data"]]
    assert seen == ["c", "c", "b", "b", "a", "a"]
    assert admin.get(AUDIT, params={"after": "x"}).json()["error"]["param"] == "after"
    assert tenant.get(AUDIT).status_code == 403


def test_an_act_that_cannot_be_written_down_is_not_done(admin, own_database):
    """A journal that takes no records stops administration, and changes nothing."""

    async def spoil():
        redis = connect(own_database.redis_url)
        await redis.set("sparke:audit:admin", "no stream")
        await redis.aclose()

    asyncio.run(spoil())
    refused = admin.post("/v1/admin/tenants/acme/keys", json={}, timeout=60)
    assert refused.status_code == 500
    assert admin.get("/v1/admin/tenants/acme").status_code == 404
