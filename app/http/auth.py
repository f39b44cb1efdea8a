"""Who asks, and for what: a tenant by API key; without any keys, the tenant `default` on loopback alone."""

import ipaddress
from collections.abc import Collection
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.domain.ids import DEFAULT_TENANT, TenantId
from app.domain.scope import USUAL_SCOPES, Scope
from app.errors import Forbidden, Unauthenticated
from app.http.deps import Deps, DepsOf
from app.http.scopes import scope_of

KEY_PREFIX = "sk-sparke-"
_HOW = "send it as 'Authorization: Bearer sk-sparke-...'; `sparke keys create --tenant NAME` makes one"

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

    Raises Unauthenticated, Forbidden and RateLimited. Keys made while the server runs are required from the next request
    on. Administrators are never held up, for they are who lifts a bound.
    """
    tenant_id, scopes = await _identify(request, deps, credentials.credentials if credentials else None)
    needed = _check_scope(request, scopes)
    per_minute = (await deps.desk.quotas.of(tenant_id)).requests_per_minute
    if per_minute is not None and needed is not Scope.ADMIN:
        request.state.tokens = await deps.desk.rate.take(tenant_id, per_minute)
    deps.desk.meter.count(tenant_id)
    return tenant_id


async def _identify(request: Request, deps: Deps, key: str | None) -> tuple[TenantId, tuple[Scope, ...]]:
    """The tenant, and what it may ask for with this key.

    Without keys in the store, requests from this machine to this machine are the tenant `default`: the server is bound
    to loopback, and the Host header must name it too, so that no web page can reach it under a name of its own.
    """
    if key is not None and key.startswith(KEY_PREFIX):
        record = await deps.keys.authenticate(key)
        return record.tenant_id, record.scopes
    if await deps.keys.any_keys():
        raise Unauthenticated(f"an API key is needed; {_HOW}" if key is None else f"no such API key; {_HOW}")
    if is_loopback(deps.settings.host) and is_loopback(request.url.hostname or ""):
        return DEFAULT_TENANT, USUAL_SCOPES
    raise Unauthenticated(f"without API keys only requests to localhost are answered; {_HOW}")


def _check_scope(request: Request, scopes: Collection[Scope]) -> Scope:
    needed = scope_of(request.method, request.scope["route"].path)
    if needed not in scopes:
        raise Forbidden(
            f"{request.method} {request.url.path[:80]} needs a key with the scope {needed};"
            f" this one has {', '.join(scopes)}"
        )
    return needed


Tenant = Annotated[TenantId, Depends(authenticate)]
