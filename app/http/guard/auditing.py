"""Which requests are acts that the audit log has, and the notes that their routes add."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from fastapi import Request

from app.audit.log import AuditLog, OpenAct
from app.domain.audit import NO_KEY, Deed, Fact, Journal, word_of
from app.domain.ids import TenantId
from app.domain.scope import Scope
from app.http.guard.scopes import NEEDED

ACTS: Mapping[tuple[str, str], str] = {
    ("POST", "/v1/webhooks"): "webhook.create",
    ("POST", "/v1/webhooks/{webhook_id}/enable"): "webhook.enable",
    ("POST", "/v1/webhooks/{webhook_id}/rotate"): "webhook.rotate",
    ("DELETE", "/v1/webhooks/{webhook_id}"): "webhook.delete",
    ("GET", "/v1/memories/{memory_id}/export"): "memory.export",
    ("POST", "/v1/memories/import"): "memory.import",
    ("POST", "/v1/memories"): "memory.create",
    ("POST", "/v1/memories/{memory_id}/fork"): "memory.fork",
    ("PATCH", "/v1/memories/{memory_id}"): "memory.shape",
    ("POST", "/v1/memories/{memory_id}/forget"): "memory.forget",
    ("DELETE", "/v1/memories/{memory_id}/entries/{entry}"): "memory.forget_entry",
    ("DELETE", "/v1/memories/{memory_id}"): "memory.delete",
    ("DELETE", "/v1/admin/tenants/{tenant_id}"): "tenant.delete",
    ("PUT", "/v1/admin/tenants/{tenant_id}/quotas"): "tenant.quotas",
    ("POST", "/v1/admin/tenants/{tenant_id}/keys"): "key.create",
    ("POST", "/v1/admin/keys/{key_id}/rotate"): "key.rotate",
    ("DELETE", "/v1/admin/keys/{key_id}"): "key.revoke",
}
"""Every route of the scopes `manage` and `admin` that changes something, and whatever else carries data away."""

_TARGETS = ("key_id", "webhook_id", "memory_id")

_current: ContextVar[OpenAct | None] = ContextVar("current_act", default=None)


def note(**facts: Fact) -> None:
    """Adds to what the audit log will say of the request's act, if it is one: numbers, ids, words."""
    act = _current.get()
    if act is not None:
        act.note(**facts)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks: the tenant, by which key, and for what that may be used. All of it is empty for who showed none."""

    tenant_id: TenantId | None = None
    key_id: str | None = None
    scopes: tuple[Scope, ...] = ()


async def begin_act(request: Request, log: AuditLog, who: Identity) -> None:
    """Writes that an act is begun, where the request is one. Raises StoreUnavailable and NotReplicated: it is not done."""
    act = ACTS.get(_place(request))
    if act is None:
        return
    is_admin = NEEDED[_place(request)] is Scope.ADMIN
    journal = Journal.ADMIN if is_admin else Journal.TENANTS
    opened = await log.begin(_deed(request, act, who), journal=journal)
    request.state.act = opened
    _current.set(opened)


async def refuse_act(
    request: Request, log: AuditLog, who: Identity, *, code: str, claimed_id: str | None = None
) -> None:
    """Writes that a request was refused, where it is an act or one of an administrator's.

    `claimed_id` is the id of the key that was shown and does not work.
    """
    place = _place(request)
    if place in ACTS or NEEDED.get(place) is Scope.ADMIN:
        facts = {} if claimed_id is None else {"claimed_key": claimed_id}
        await log.refuse(_deed(request, ACTS.get(place, "admin.read"), who), code=code, **facts)


async def end_act(act: OpenAct | None, status: int | None) -> None:
    """Writes how a request's act ended; None: it was never answered."""
    if act is None:
        return
    if status is None or status >= 500:
        await act.end("failed", code=None if status is None else str(status))
    elif status >= 400:
        await act.end("refused", code=str(status))
    else:
        await act.end("done")


def _place(request: Request) -> tuple[str, str]:
    return request.method, request.scope["route"].path


def _deed(request: Request, act: str, who: Identity) -> Deed:
    path = request.path_params
    target = next((word_of(path[name]) for name in _TARGETS if name in path), None)
    tenant: str | None = None
    if "tenant_id" in path:
        tenant = word_of(path["tenant_id"])
    elif NEEDED.get(_place(request)) is not Scope.ADMIN:
        tenant = who.tenant_id
    return Deed(act, who.key_id or NO_KEY, who.tenant_id, tenant, target, request.state.request_id)
