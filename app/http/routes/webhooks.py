"""Webhooks: URLs of a tenant that are told how its jobs and batches end."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from app.domain.ids import WebhookId, parse_webhook_id
from app.domain.webhook import DEFAULT_GRACE_S, MAX_GRACE_S
from app.errors import InvalidId, NotFound
from app.http.bodies.json_body import read_json
from app.http.bodies.webhook_answers import (
    NewWebhookAnswer,
    WebhookAnswer,
    WebhookBody,
    WebhookDeletedAnswer,
    WebhooksAnswer,
    describe_webhook,
)
from app.http.deps import DepsOf
from app.http.guard.auditing import note
from app.http.guard.auth import Tenant
from app.http.openapi.document import WEBHOOK_DOCS
from app.http.openapi.error_docs import fails_with

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


async def read_webhook_body(request: Request, _tenant: Tenant, deps: DepsOf) -> WebhookBody:
    """The body; it is read only after the key has been checked."""
    return await read_json(request, WebhookBody, max_bytes=deps.settings.max_body_bytes)


@router.post("", status_code=201, responses=fails_with(400, 413, 415), openapi_extra=WEBHOOK_DOCS)
async def create_webhook(
    tenant_id: Tenant, deps: DepsOf, body: Annotated[WebhookBody, Depends(read_webhook_body)]
) -> NewWebhookAnswer:
    """Have a URL told how jobs and batches end from now on. Its messages are signed as Standard Webhooks says."""
    url = await deps.webhook_targets.check(body.url)
    webhook = await deps.webhooks.create(tenant_id, url)
    note(webhook=webhook.webhook_id)
    return NewWebhookAnswer(**describe_webhook(webhook).model_dump(), secret=webhook.secret)


@router.get("")
async def list_webhooks(tenant_id: Tenant, deps: DepsOf) -> WebhooksAnswer:
    """Your webhooks, without their secrets."""
    return WebhooksAnswer(
        data=[describe_webhook(each) for each in await deps.webhooks.list_webhooks(tenant_id)]
    )


@router.get("/{webhook_id}", responses=fails_with(404))
async def show_webhook(webhook_id: str, tenant_id: Tenant, deps: DepsOf) -> WebhookAnswer:
    """A webhook, without its secret."""
    return describe_webhook(await deps.webhooks.get(tenant_id, _parse(webhook_id)))


@router.post("/{webhook_id}/enable", responses=fails_with(404))
async def enable_webhook(webhook_id: str, tenant_id: Tenant, deps: DepsOf) -> WebhookAnswer:
    """Tell a disabled webhook again, of what ends from now on."""
    parsed = _parse(webhook_id)
    await deps.webhooks.enable(tenant_id, parsed)
    return describe_webhook(await deps.webhooks.get(tenant_id, parsed))


@router.post("/{webhook_id}/rotate", responses=fails_with(400, 404))
async def rotate_webhook(
    webhook_id: str,
    tenant_id: Tenant,
    deps: DepsOf,
    grace_s: Annotated[
        int,
        Query(ge=0, le=MAX_GRACE_S, description="For how long the old secret signs too; 0 ends it at once."),
    ] = DEFAULT_GRACE_S,
) -> NewWebhookAnswer:
    """Give a webhook a new secret. Until the old one ends, each message has a signature by either."""
    webhook = await deps.webhooks.rotate(tenant_id, _parse(webhook_id), grace_s=grace_s)
    return NewWebhookAnswer(**describe_webhook(webhook).model_dump(), secret=webhook.secret)


@router.delete("/{webhook_id}", responses=fails_with(404))
async def delete_webhook(webhook_id: str, tenant_id: Tenant, deps: DepsOf) -> WebhookDeletedAnswer:
    """End a webhook, and what waits for it. A second time there is none: 404."""
    parsed = _parse(webhook_id)
    await deps.webhooks.delete(tenant_id, parsed)
    return WebhookDeletedAnswer(id=parsed)


def _parse(webhook_id: str) -> WebhookId:
    """A webhook's id from a path. What cannot be one names none."""
    try:
        return parse_webhook_id(webhook_id)
    except InvalidId as error:
        raise NotFound(f"there is no webhook {webhook_id[:80]!r}") from error
