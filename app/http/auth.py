"""Who asks: a tenant by API key; without any keys, the tenant `default` on loopback alone."""

import ipaddress
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.domain.ids import DEFAULT_TENANT, TenantId
from app.errors import Unauthenticated
from app.http.deps import DepsOf

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
    """The tenant of the key. Keys made while the server runs are required from the next request on.

    Without keys in the store, requests from this machine to this machine are the tenant `default`: the server is bound
    to loopback, and the Host header must name it too, so that no web page can reach it under a name of its own.
    """
    key = credentials.credentials if credentials else None
    if key is not None and key.startswith(KEY_PREFIX):
        return await deps.keys.authenticate(key)
    if await deps.keys.any_keys():
        raise Unauthenticated(f"an API key is needed; {_HOW}" if key is None else f"no such API key; {_HOW}")
    if is_loopback(deps.settings.host) and is_loopback(request.url.hostname or ""):
        return DEFAULT_TENANT
    raise Unauthenticated(f"without API keys only requests to localhost are answered; {_HOW}")


Tenant = Annotated[TenantId, Depends(authenticate)]
