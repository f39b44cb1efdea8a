"""`sparke webhooks`: what a tenant's webhooks are made, listed and ended with."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from redis.asyncio import Redis

from app.audit.log import OpenAct
from app.cli_redis import DataDir, deed_of, list_known, read_settings, run_act, run_on_redis, show_time
from app.domain.audit import Deed
from app.domain.ids import TenantId, parse_tenant_id, parse_webhook_id
from app.domain.webhook import DEFAULT_GRACE_S, MAX_GRACE_S, Webhook
from app.redis.replicas import Replicas
from app.settings import Settings
from app.webhooks.store import WebhookStore
from app.webhooks.targets import SystemResolver, Targets

webhooks = typer.Typer(
    no_args_is_help=True, help="URLs that are told how jobs end; the server may run or not."
)

Tenant = Annotated[str, typer.Option(help="Whose webhook.")]
WebhookArgument = Annotated[str, typer.Argument(help="The webhook's id: wh_…")]

_T = TypeVar("_T")


@webhooks.command("create")
def create_webhook(
    tenant: Tenant,
    url: Annotated[str, typer.Option(help="Where to: https, and a public address.")],
    data_dir: DataDir = None,
) -> None:
    """Make a webhook and print its secret, alone, on standard output. It is not shown again."""
    tenant_id = parse_tenant_id(tenant)

    async def create(store: WebhookStore, settings: Settings) -> Webhook:
        resolver = SystemResolver()
        try:
            checked = await Targets(resolver, allow_private=settings.webhooks_allow_private).check(url)
        finally:
            resolver.close()
        return await store.create(tenant_id, checked)

    made = _run(data_dir, create, deed_of("webhook.create", tenant=tenant_id), known=tenant_id)
    typer.echo(made.secret)
    typer.echo(f"Webhook {made.webhook_id} of tenant {tenant_id}. Its receiver needs this secret.", err=True)


@webhooks.command("list")
def list_webhooks(
    tenant: Annotated[str | None, typer.Option(help="Only the webhooks of this tenant.")] = None,
    data_dir: DataDir = None,
) -> None:
    """List the webhooks: id, tenant, when it was made, whether it is told, URL."""
    tenant_id = None if tenant is None else parse_tenant_id(tenant)

    async def read(store: WebhookStore, _settings: Settings) -> list[Webhook]:
        tenants: list[TenantId] = await store.list_tenants() if tenant_id is None else [tenant_id]
        return [webhook for each in tenants for webhook in await store.list_webhooks(each)]

    for found in _run(data_dir, read, known=tenant_id):
        disabled = found.disabled_at_ms
        state = "active" if disabled is None else f"disabled {show_time(disabled)}"
        made = show_time(found.created_at_ms)
        typer.echo(f"{found.webhook_id}\t{found.tenant_id}\t{made}\t{state}\t{found.url}")


@webhooks.command("delete")
def delete_webhook(tenant: Tenant, webhook_id: WebhookArgument, data_dir: DataDir = None) -> None:
    """End a webhook, and what waits for it."""
    ids = parse_tenant_id(tenant), parse_webhook_id(webhook_id)
    deed = deed_of("webhook.delete", tenant=tenant, target=webhook_id)
    _run(data_dir, lambda store, _: store.delete(*ids), deed)
    typer.echo(f"Webhook {webhook_id} is deleted.", err=True)


@webhooks.command("enable")
def enable_webhook(tenant: Tenant, webhook_id: WebhookArgument, data_dir: DataDir = None) -> None:
    """Tell a webhook again that answered 410, of what ends from now on."""
    ids = parse_tenant_id(tenant), parse_webhook_id(webhook_id)
    deed = deed_of("webhook.enable", tenant=tenant, target=webhook_id)
    _run(data_dir, lambda store, _: store.enable(*ids), deed)
    typer.echo(f"Webhook {webhook_id} is enabled.", err=True)


@webhooks.command("rotate")
def rotate_webhook(
    tenant: Tenant,
    webhook_id: WebhookArgument,
    grace_s: Annotated[
        int, typer.Option(min=0, max=MAX_GRACE_S, help="For how long the old secret signs too.")
    ] = DEFAULT_GRACE_S,
    data_dir: DataDir = None,
) -> None:
    """Give a webhook a new secret and print it, alone, on standard output. It is not shown again."""
    ids = parse_tenant_id(tenant), parse_webhook_id(webhook_id)
    deed = deed_of("webhook.rotate", tenant=tenant, target=webhook_id)
    rotated = _run(data_dir, lambda store, _: store.rotate(*ids, grace_s=grace_s), deed)
    typer.echo(rotated.secret)
    typer.echo(f"Webhook {webhook_id} has a new secret; the old one signs too for {grace_s} s.", err=True)


def _run(
    data_dir: Path | None,
    work: Callable[[WebhookStore, Settings], Awaitable[_T]],
    deed: Deed | None = None,
    *,
    known: TenantId | None = None,
) -> _T:
    """What the work gives, once the tenant is found `known`, if one is named. With a deed it is an act, which the audit log has."""
    settings = read_settings(data_dir=data_dir)

    async def run(redis: Redis, replicas: Replicas, act: OpenAct | None = None) -> _T:
        if known is not None:
            await (await list_known(redis, replicas)).check(known)
        given = await work(WebhookStore(redis, replicas=replicas), settings)
        if act is not None and isinstance(given, Webhook):
            act.note(webhook=given.webhook_id)
        return given

    return run_on_redis(settings, run) if deed is None else run_act(settings, deed, run)
