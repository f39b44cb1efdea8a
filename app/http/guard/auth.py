"""Who asks, and for what: a tenant by API key; without any keys, the tenant `default` on loopback alone."""

import ipaddress
import re
from collections.abc import Collection
from typing import Annotated

import structlog
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from opentelemetry.trace import get_current_span

from app.domain.ids import DEFAULT_TENANT, TenantId
from app.domain.scope import USUAL_SCOPES, Scope
from app.errors import Forbidden, Unauthenticated
from app.http.deps import Deps, DepsOf
from app.http.guard.auditing import Identity, begin_act, refuse_act
from app.http.guard.query import check_body, check_query
from app.http.guard.scopes import scope_of
from app.telemetry.tracing import note
from app.tenants.keys import KEY_PREFIX, claimed_key_id

_HOW = "send one as 'Authorization: Bearer sk-sparke-...'; `sparke keys create --tenant NAME` makes one"

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")

_bearer = HTTPBearer(auto_error=False, description="An API key: `sk-sparke-...`.")


def is_loopback(host: str) -> bool:
    """True where only this machine can reach `host` (a name or an address, perhaps in brackets)."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def authenticate(
    request: Request,
    deps: DepsOf,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> TenantId:
    """The tenant of the key, which must have the route's scope, and a request left this minute.

    Raises Unauthenticated, Forbidden, RateLimited, and for what the route would not read RequestValidationError and InvalidRequest. Keys made while the server runs are required from the next request
    on. Administrators are never held up, for they are who lifts a bound. An act is written down before it is done.
    """
    tenant_id, who = await _let_in(request, deps, credentials.credentials if credentials else None)
    structlog.contextvars.bind_contextvars(tenant_id=tenant_id)
    note(get_current_span(), {"tenant_id": tenant_id})
    per_minute = (await deps.desk.quotas.of(tenant_id)).requests_per_minute
    if per_minute is not None and _needed(request) is not Scope.ADMIN:
        request.state.tokens = await deps.desk.rate.take(tenant_id, per_minute)
    deps.desk.meter.count(tenant_id)
    await begin_act(request, deps.audit, who)
    check_query(request)
    check_body(request)
    return tenant_id


async def _let_in(request: Request, deps: Deps, key: str | None) -> tuple[TenantId, Identity]:
    """Who asks, if that one may. An attempt at an act that is refused is written down."""
    try:
        tenant_id, who = await _identify(request, deps, key)
    except Unauthenticated as error:
        await refuse_act(request, deps.audit, Identity(), code=error.code, claimed_id=claimed_key_id(key))
        raise
    try:
        _check_scope(request, who.scopes)
    except Forbidden as error:
        await refuse_act(request, deps.audit, who, code=error.code)
        raise
    return tenant_id, who


async def _identify(request: Request, deps: Deps, key: str | None) -> tuple[TenantId, Identity]:
    """The tenant, and what it may ask for with this key.

    Without keys in the store, requests from this machine to this machine are the tenant `default`: the server is bound
    to loopback, and the Host header must name it too, so that no web page can reach it under a name of its own. Nor may
    a page from elsewhere send its visitor's browser: that says by `Origin` or `Sec-Fetch-Site` where it comes from.
    """
    if key is not None and key.startswith(KEY_PREFIX):
        record = await deps.keys.authenticate(key)
        return record.tenant_id, Identity(record.tenant_id, record.key_id, record.scopes)
    if await deps.keys.any_keys():
        raise Unauthenticated(f"an API key is needed; {_HOW}" if key is None else f"no such API key; {_HOW}")
    if not is_loopback(deps.settings.host) or not is_loopback(_host_of(request.headers.get("host", ""))):
        raise Unauthenticated(f"without API keys only requests to localhost are answered; {_HOW}")
    if _is_from_elsewhere(request):
        raise Unauthenticated(f"without API keys no requests of other sites' pages are answered; {_HOW}")
    return DEFAULT_TENANT, Identity(DEFAULT_TENANT, None, USUAL_SCOPES)


def _is_from_elsewhere(request: Request) -> bool:
    """True where a browser sends this for a page that does not come from this machine."""
    if request.headers.get("sec-fetch-site") == "cross-site":
        return True
    origin = request.headers.get("origin")
    if origin is None:
        return False
    scheme, _, authority = origin.partition("://")
    return scheme not in ("http", "https") or not is_loopback(_host_of(authority))


def _host_of(authority: str) -> str:
    """The name or address of `host` or `host:port`; empty where it has another form, which is nobody's.

    The framework takes the address that the server listens on, which is this machine's, where it does not like the header.
    """
    found = _AUTHORITY.fullmatch(authority)
    return found[1] if found else ""


def _check_scope(request: Request, scopes: Collection[Scope]) -> None:
    needed = _needed(request)
    if needed not in scopes:
        raise Forbidden(
            f"{request.method} {request.url.path[:80]} needs a key with the scope {needed};"
            f" this one has {', '.join(scopes)}"
        )


def _needed(request: Request) -> Scope:
    return scope_of(request.method, request.scope["route"].path)


Tenant = Annotated[TenantId, Depends(authenticate)]
