"""What a key may be used for: one table for all routes, and the answer to a key that may not."""

import asyncio
import re

import httpx
import openai
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from patience import PATIENCE_S

from app.domain.ids import TenantId
from app.domain.scope import Scope
from app.http.app import create_app
from app.http.errors import PROBLEM_JSON
from app.http.guard import auth, scopes
from app.http.process.wiring import open_deps
from app.redis.connection import connect
from app.tenants.keys import KeyStore, KeyWish


def _asks_for_a_key(route) -> bool:
    dependant = getattr(route, "dependant", None)
    return dependant is not None and _reaches_authentication(dependant)


def _reaches_authentication(dependant) -> bool:
    return any(
        inner.call is auth.authenticate or _reaches_authentication(inner) for inner in dependant.dependencies
    )


def undeclared(app: FastAPI) -> list[str]:
    """What is wrong with the table of scopes for an app: routes that are missing, and entries of no route."""
    faults, seen = [], set()
    for route in iter_route_contexts(app.routes):
        for method in (route.methods or set()) - {"HEAD"}:
            place = (method, route.path)
            seen.add(place)
            if place not in scopes.NEEDED:
                faults.append(f"{method} {route.path} declares no scope")
            elif _asks_for_a_key(route) != bool(scopes.NEEDED[place]):
                faults.append(f"{method} {route.path} asks for a key, or its table says so, but not both")
    return faults + [f"{place} is no route" for place in scopes.NEEDED if place not in seen]


@pytest.fixture
def app(settings):
    """The application of the settings."""

    async def make() -> FastAPI:
        async with open_deps(settings, settings.redis_url) as deps:
            return create_app(deps)

    return asyncio.run(make())


def test_every_route_declares_the_scope_that_it_needs(app):
    """All routes that there are, and no others; those with a scope ask for a key, and the others for none."""
    assert undeclared(app) == []


def test_a_route_without_a_scope_is_seen(app):
    """Open or with a key: the walk names it."""

    @app.get("/v1/new")
    async def new(_tenant: auth.Tenant) -> None: ...

    assert undeclared(app) == ["GET /v1/new declares no scope"]
    with pytest.raises(ValueError, match="declares no scope"):
        scopes.scope_of("GET", "/v1/new")


def _issue(redis_url: str, *wishes: KeyWish) -> list[str]:
    async def issue() -> list[str]:
        redis = connect(redis_url)
        try:
            return [(await KeyStore(redis).issue(TenantId("acme"), wish)).key for wish in wishes]
        finally:
            await redis.aclose()

    return asyncio.run(issue())


def test_each_route_takes_keys_with_its_scope_alone(serve_api, own_database):
    """With the scope anything but 401 and 403; with all others 403 `permission_error` before anything else is looked at."""
    all_but = {scope: tuple(other for other in Scope if other is not scope) for scope in Scope}
    wishes = [KeyWish(scopes=(scope,)) for scope in Scope] + [
        KeyWish(scopes=all_but[scope]) for scope in Scope
    ]
    keys = _issue(own_database.redis_url, *wishes)
    alone, others = dict(zip(Scope, keys[:4], strict=True)), dict(zip(Scope, keys[4:], strict=True))
    with httpx.Client(base_url=serve_api(own_database), timeout=PATIENCE_S) as http:
        for (method, path), scope in scopes.NEEDED.items():
            if scope is None:
                continue
            where = re.sub(r"\{\w+\}", "x", path)
            refused = http.request(method, where, headers={"authorization": f"Bearer {others[scope]}"})
            error = refused.json()["error"]
            assert (refused.status_code, error["type"], error["code"]) == (403, *["permission_error"] * 2), (
                path
            )
            assert refused.headers["content-type"] == PROBLEM_JSON
            assert f"the scope {scope};" in error["message"]
            taken = http.request(method, where, headers={"authorization": f"Bearer {alone[scope]}"})
            assert taken.status_code not in (401, 403), (method, path)


def test_the_official_client_raises_its_error_for_a_missing_scope(serve_api, own_database):
    """PermissionDeniedError, which it does not try again."""
    [key] = _issue(own_database.redis_url, KeyWish(scopes=(Scope.READ,)))
    with openai.OpenAI(base_url=f"{serve_api(own_database)}/v1", api_key=key) as client:
        assert client.models.list().data
        with pytest.raises(openai.PermissionDeniedError) as caught:
            client.images.generate(prompt="a star")
    assert (caught.value.code, caught.value.type) == ("permission_error", "permission_error")
