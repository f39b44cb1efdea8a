"""Tenants, keys, quotas and usage as an administrator sees them."""

import time

import httpx
import pytest
from patience import PATIENCE_S

from app.domain.scope import Scope

ADMIN = "/v1/admin"


@pytest.fixture
def admin(serve_api, own_database, issue_key):
    """A client with a key that has the scope `admin` alone, as the command line makes the first one."""
    key = issue_key(own_database.redis_url, "ops", Scope.ADMIN)
    with httpx.Client(
        base_url=serve_api(own_database), headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S
    ) as client:
        yield client


def _as(client, key):
    return httpx.Client(
        base_url=client.base_url, headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S
    )


def test_a_tenant_begins_with_its_first_key(admin):
    """Not found before; then it is listed and its key works for what it was made for."""
    assert admin.get(f"{ADMIN}/tenants/acme").status_code == 404
    assert admin.get(f"{ADMIN}/tenants/acme/keys").status_code == 404
    body = {"name": "dashboard", "scopes": ["read"], "expires_in_s": 60}
    made = admin.post(f"{ADMIN}/tenants/acme/keys", json=body)
    key = made.json()
    assert (made.status_code, key["name"], key["scopes"], key["tenant_id"]) == (
        201,
        "dashboard",
        ["read"],
        "acme",
    )
    assert key["expires_at"] - key["created_at"] == 60
    assert [each["id"] for each in admin.get(f"{ADMIN}/tenants").json()["data"]] == ["acme", "default", "ops"]
    with _as(admin, key["key"]) as client:
        assert client.get("/v1/models").status_code == 200
        assert client.post("/v1/jobs", json={"prompt": "x"}).status_code == 403
        assert client.get(f"{ADMIN}/tenants").status_code == 403
    [listed] = admin.get(f"{ADMIN}/tenants/acme/keys").json()["data"]
    assert (listed["id"], listed["state"]) == (key["id"], "active")
    assert listed["last_used_at"] is not None
    assert "key" not in listed


def test_tenants_are_listed_page_by_page(admin):
    """In the order of their names; a cursor need not be there."""
    for name in ("a", "b", "c"):
        admin.post(f"{ADMIN}/tenants/{name}/keys", json={})
    first = admin.get(f"{ADMIN}/tenants?limit=2").json()
    assert ([each["id"] for each in first["data"]], first["has_more"]) == (["a", "b"], True)
    rest = admin.get(f"{ADMIN}/tenants?after=bb").json()
    assert ([each["id"] for each in rest["data"]], rest["has_more"]) == (["c", "default", "ops"], False)
    assert admin.get(f"{ADMIN}/tenants?after=B").json()["error"]["param"] == "after"


def test_keys_are_rotated_and_revoked(admin):
    """The successor works and is named; with a grace of 0 s the old one does not; a revoked one stays so."""
    old = admin.post(f"{ADMIN}/tenants/acme/keys", json={"name": "ci"}).json()
    rotated = admin.post(f"{ADMIN}/keys/{old['id']}/rotate", json={"grace_s": 0})
    new = rotated.json()
    assert (rotated.status_code, new["name"], new["scopes"]) == (201, "ci", old["scopes"])
    again = admin.post(f"{ADMIN}/keys/{old['id']}/rotate", json={})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "key_ended")
    found = {each["id"]: each for each in admin.get(f"{ADMIN}/tenants/acme/keys").json()["data"]}
    assert (found[old["id"]]["state"], found[old["id"]]["successor_id"]) == ("expired", new["id"])
    for key, status in ((old, 401), (new, 200)):
        with _as(admin, key["key"]) as client:
            assert client.get("/v1/models").status_code == status
    for _ in range(2):
        ended = admin.delete(f"{ADMIN}/keys/{new['id']}")
        assert (ended.status_code, ended.json()["state"]) == (200, "revoked")
    with _as(admin, new["key"]) as client:
        assert client.get("/v1/models").status_code == 401
    assert admin.delete(f"{ADMIN}/keys/00000000").status_code == 404


def test_quotas_hold_for_the_tenant_that_they_were_set_for(admin):
    """At once at the server where they were set; for others the defaults hold; set anew, the old ones are gone."""
    keys = {name: admin.post(f"{ADMIN}/tenants/{name}/keys", json={}).json()["key"] for name in ("a", "b")}
    shown = admin.put(
        f"{ADMIN}/tenants/a/quotas", json={"images_per_day": 1, "requests_per_minute": 3}
    ).json()
    assert (shown["quotas"]["images_per_day"], shown["quotas"]["max_waiting_jobs"]) == (1, 1000)
    assert (shown["overrides"]["images_per_day"], shown["overrides"]["max_waiting_jobs"]) == (1, None)
    body = {"model": "unserved", "prompt": "x", "n": 2}
    with _as(admin, keys["a"]) as a, _as(admin, keys["b"]) as b:
        assert a.post("/v1/jobs", json=body).json()["error"]["code"] == "insufficient_quota"
        assert b.post("/v1/jobs", json=body).status_code == 202
        codes = [a.get("/v1/models").status_code for _ in range(3)]
        assert codes == [200, 200, 429]
        assert admin.put(f"{ADMIN}/tenants/a/quotas", json={}).json()["overrides"]["images_per_day"] is None
        assert a.post("/v1/jobs", json=body).status_code == 202
    used = admin.get(f"{ADMIN}/tenants/a/usage?days=1").json()
    assert (used["tenant_id"], used["data"][0]["jobs"], used["data"][0]["images"]) == ("a", 1, 2)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("tenants/a/keys", {"scopes": ["root"]}, "scopes"),
        ("tenants/a/keys", {"scopes": []}, "scopes"),
        ("tenants/a/keys", {"expires_in_s": 0}, "expires_in_s"),
        ("tenants/a/keys", {"name": "a\nb"}, "name"),
    ],
)
def test_a_key_that_cannot_be_is_refused(admin, path, body, param):
    """With the member at fault; no tenant is made."""
    refused = admin.post(f"{ADMIN}/{path}", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert admin.get(f"{ADMIN}/tenants/a").status_code == 404


def test_an_administrator_is_never_held_up(serve_api, own_database, issue_key):
    """Where everybody has one request a minute, whoever lifts that still gets through."""
    own = own_database.model_copy(update={"requests_per_minute": 1})
    key = issue_key(own.redis_url, "ops", Scope.ADMIN, Scope.READ)
    with httpx.Client(
        base_url=serve_api(own), headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S
    ) as client:
        assert [client.get("/v1/models").status_code for _ in range(2)] == [200, 429]
        assert client.get(f"{ADMIN}/tenants").status_code == 200
        assert client.put(f"{ADMIN}/tenants/ops/quotas", json={"requests_per_minute": 600}).status_code == 200
        time.sleep(0.2)
        assert client.get("/v1/models").status_code == 200


def test_a_deleted_tenants_keys_are_gone_at_once(admin):
    """And with them all access; the deletion is shown, once more it is the same, and no new key can be made meanwhile."""
    key = admin.post(f"{ADMIN}/tenants/acme/keys", json={}).json()["key"]
    with _as(admin, key) as client:
        assert client.post("/v1/jobs", json={"model": "unserved", "prompt": "x"}).status_code == 202
        deleted = admin.delete(f"{ADMIN}/tenants/acme")
        assert client.get("/v1/models").status_code == 401
    shown = deleted.json()
    assert (deleted.status_code, shown["state"]) == (202, "deleting")
    again = admin.delete(f"{ADMIN}/tenants/acme").json()
    assert again["deletion"]["requested_at"] == shown["deletion"]["requested_at"]
    refused = admin.post(f"{ADMIN}/tenants/acme/keys", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "tenant_deleting")
    until_s = time.monotonic() + PATIENCE_S
    while admin.get(f"{ADMIN}/tenants/acme").json()["deletion"]["state"] != "watching":
        assert time.monotonic() < until_s
        time.sleep(0.2)
    assert admin.get(f"{ADMIN}/tenants/acme/usage").json()["data"] == []


def test_without_keys_nobody_is_an_administrator(api_url):
    """A server without keys lets this machine do all but administer it."""
    refused = httpx.get(f"{api_url}{ADMIN}/tenants", timeout=PATIENCE_S)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_error")
