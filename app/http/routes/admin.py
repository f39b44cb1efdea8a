"""For administrators: tenants with their keys, quotas and usage."""

from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Query, Request

from app.domain.ids import NAME_FORM, TenantId, parse_tenant_id
from app.domain.scope import USUAL_SCOPES, parse_scopes
from app.errors import InvalidId, NotFound
from app.http.bodies.admin_bodies import KEY_DOCS, QUOTAS_DOCS, ROTATE_DOCS, KeyBody, QuotasBody, RotateBody
from app.http.bodies.json_body import read_json
from app.http.bodies.tenant_answers import (
    KeyAnswer,
    KeysAnswer,
    NewKeyAnswer,
    TenantAnswer,
    TenantNameAnswer,
    TenantsAnswer,
    UsageAnswer,
    describe_key,
    describe_tenant,
    read_usage,
)
from app.http.deps import Deps, DepsOf
from app.http.guard.auditing import note
from app.http.guard.auth import Tenant
from app.http.openapi.error_docs import fails_with
from app.http.routes.usage import Days
from app.tenants.keys import DEFAULT_GRACE_S, IssuedKey, KeyWish

MAX_LISTED = 100

router = APIRouter(prefix="/v1/admin", tags=["admin"])

_log = structlog.get_logger(__name__)


async def read_key_body(request: Request, _admin: Tenant, deps: DepsOf) -> KeyBody:
    """The body; it is read only after the key has been checked."""
    return await read_json(request, KeyBody, max_bytes=deps.settings.max_body_bytes)


async def read_rotate_body(request: Request, _admin: Tenant, deps: DepsOf) -> RotateBody:
    """The body; it is read only after the key has been checked."""
    return await read_json(request, RotateBody, max_bytes=deps.settings.max_body_bytes)


async def read_quotas_body(request: Request, _admin: Tenant, deps: DepsOf) -> QuotasBody:
    """The body; it is read only after the key has been checked."""
    return await read_json(request, QuotasBody, max_bytes=deps.settings.max_body_bytes)


async def find_tenant(tenant_id: str, _admin: Tenant, deps: DepsOf) -> TenantId:
    """The tenant of the path. Raises NotFound, also for what can be no tenant's name."""
    found = _parse(tenant_id)
    await deps.desk.registry.check(found)
    return found


Found = Annotated[TenantId, Depends(find_tenant)]


@router.get("/tenants", responses=fails_with(400))
async def list_tenants(
    _admin: Tenant,
    deps: DepsOf,
    after: Annotated[
        str | None,
        Query(
            description="The name of the tenant before the first one.",
            json_schema_extra={"pattern": NAME_FORM},
        ),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED, description="At most so many.")] = 20,
) -> TenantsAnswer:
    """All tenants, by name."""
    try:
        cursor = None if after is None else parse_tenant_id(after)
    except InvalidId as error:
        raise InvalidId(error.message, param="after") from error
    page, deleting = (
        await deps.desk.registry.list_tenants(limit, cursor),
        await deps.desk.registry.deletions(),
    )
    data = [
        TenantNameAnswer(id=tenant_id, state="deleting" if tenant_id in deleting else "active")
        for tenant_id in page.tenants
    ]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return TenantsAnswer(data=data, first_id=ends[0], last_id=ends[1], has_more=page.has_more)


@router.get("/tenants/{tenant_id}", responses=fails_with(404))
async def show_tenant(tenant_id: Found, deps: DepsOf) -> TenantAnswer:
    """A tenant, with the quotas that hold for it."""
    return await describe_tenant(tenant_id, deps)


@router.delete("/tenants/{tenant_id}", status_code=202, responses=fails_with(404))
async def delete_tenant(tenant_id: Found, deps: DepsOf) -> TenantAnswer:
    """Delete a tenant: its keys at once, then its jobs, images, files, batches, webhooks, memories and usage.

    It goes on whatever is restarted meanwhile. Ask for the tenant to see how far it is; once it is not found, nothing of it
    is left. Until then its name is not free. Once more it is the same deletion.
    """
    await deps.desk.registry.ask_deletion(tenant_id)
    num_keys = await deps.keys.remove_all(tenant_id)
    note(num_keys=num_keys)
    _log.warning("tenant_deletion_asked", tenant_id=tenant_id, num_api_keys=num_keys)
    return await describe_tenant(tenant_id, deps)


@router.put(
    "/tenants/{tenant_id}/quotas", responses=fails_with(400, 404, 413, 415), openapi_extra=QUOTAS_DOCS
)
async def set_quotas(
    tenant_id: Found, deps: DepsOf, body: Annotated[QuotasBody, Depends(read_quotas_body)]
) -> TenantAnswer:
    """Set a tenant's quotas, in place of all that was set for it before. They hold everywhere within seconds."""
    await deps.desk.quotas.set(tenant_id, body.overrides())
    note(**body.model_dump(exclude_none=True))
    _log.info("quotas_set", tenant_id=tenant_id, **body.model_dump(exclude_none=True))
    return await describe_tenant(tenant_id, deps)


@router.get("/tenants/{tenant_id}/usage", responses=fails_with(400, 404))
async def show_tenant_usage(tenant_id: Found, deps: DepsOf, days: Days = 31) -> UsageAnswer:
    """What a tenant uses, as it sees it itself."""
    return await read_usage(tenant_id, days, deps)


@router.get("/tenants/{tenant_id}/keys", responses=fails_with(404))
async def list_keys(tenant_id: Found, deps: DepsOf) -> KeysAnswer:
    """A tenant's keys, those that have ended among them."""
    now_ms = deps.now_ms()
    used = await deps.keys.list_used(tenant_id)
    return KeysAnswer(
        data=[describe_key(one.record, now_ms, last_used_at_ms=one.last_used_at_ms) for one in used]
    )


@router.post(
    "/tenants/{tenant_id}/keys",
    status_code=201,
    responses=fails_with(400, 404, 409, 413, 415),
    openapi_extra=KEY_DOCS,
)
async def create_key(
    tenant_id: str, _admin: Tenant, deps: DepsOf, body: Annotated[KeyBody, Depends(read_key_body)]
) -> NewKeyAnswer:
    """Make a key; a tenant's first one makes the tenant. It is shown this once."""
    scopes = USUAL_SCOPES if body.scopes is None else parse_scopes(body.scopes)
    wish = KeyWish(body.name or "", scopes, body.expires_in_s)
    return _show_new(await deps.keys.issue(_parse(tenant_id), wish), deps, "api_key_made")


@router.post(
    "/keys/{key_id}/rotate",
    status_code=201,
    responses=fails_with(400, 404, 409, 413, 415),
    openapi_extra=ROTATE_DOCS,
)
async def rotate_key(
    key_id: str, _admin: Tenant, deps: DepsOf, body: Annotated[RotateBody, Depends(read_rotate_body)]
) -> NewKeyAnswer:
    """Make a key that takes another one's place, with its name and scopes. The old one works for a grace time still.

    A key has one successor: once more is 409, and so is a key that works no more.
    """
    grace_s = DEFAULT_GRACE_S if body.grace_s is None else body.grace_s
    issued = await deps.keys.rotate(key_id, grace_s=grace_s, life_s=body.expires_in_s)
    return _show_new(issued, deps, "api_key_rotated")


@router.delete("/keys/{key_id}", responses=fails_with(404))
async def revoke_key(key_id: str, _admin: Tenant, deps: DepsOf) -> KeyAnswer:
    """End a key at once. Once more it changes nothing."""
    record = await deps.keys.revoke(key_id)
    note(key_tenant=record.tenant_id)
    _log.info("api_key_revoked", key_id=key_id, tenant_id=record.tenant_id)
    return describe_key(record, deps.now_ms())


def _show_new(issued: IssuedKey, deps: Deps, event: str) -> NewKeyAnswer:
    record = issued.record
    note(new_key=record.key_id, key_tenant=record.tenant_id, scopes=",".join(record.scopes))
    _log.info(event, key_id=record.key_id, tenant_id=record.tenant_id, scopes=record.scopes)
    return NewKeyAnswer(**describe_key(record, deps.now_ms()).model_dump(), key=issued.key)


def _parse(tenant_id: str) -> TenantId:
    """A tenant's name from a path. What cannot be one names no tenant."""
    try:
        return parse_tenant_id(tenant_id)
    except InvalidId as error:
        raise NotFound(f"there can be no tenant {tenant_id[:80]!r}: {error.message}") from error
