"""`sparke webhooks`: what a tenant's webhooks are made, listed and ended with."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from app.domain.ids import TenantId, parse_tenant_id, parse_webhook_id
from app.domain.webhook import Webhook
from app.redis.connection import connect
from app.redis.embedded import running_or_started
from app.redis.replicas import Replicas
from app.settings import Settings, load_settings
from app.telemetry.logs import configure_logs
from app.webhooks.store import WebhookStore
from app.webhooks.targets import SystemResolver, Targets

webhooks = typer.Typer(
    no_args_is_help=True, help="URLs that are told how jobs end; the server may run or not."
)

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the embedded Redis [SPARKE_DATA_DIR, else ./data].")
]
Tenant = Annotated[str, typer.Option(help="Whose webhook.")]
WebhookArgument = Annotated[str, typer.Argument(help="The webhook's id: wh_…")]


@webhooks.command("create")
def create_webhook(
    tenant: Tenant,
    url: Annotated[str, typer.Option(help="Where to: https, and a public address.")],
    data_dir: DataDir = None,
) -> None:
    """Make a webhook and print its secret, alone, on standard output. It is not shown again."""
    tenant_id = parse_tenant_id(tenant)

    async def create(settings: Settings) -> Webhook:
        resolver = SystemResolver()
        try:
            checked = await Targets(resolver, allow_private=settings.webhooks_allow_private).check(url)
        finally:
            resolver.close()
        async with _store(settings) as store:
            return await store.create(tenant_id, checked)

    made = asyncio.run(create(_settings(data_dir)))
    typer.echo(made.secret)
    typer.echo(f"Webhook {made.webhook_id} of tenant {tenant_id}. Its receiver needs this secret.", err=True)


@webhooks.command("list")
def list_webhooks(
    tenant: Annotated[str | None, typer.Option(help="Only the webhooks of this tenant.")] = None,
    data_dir: DataDir = None,
) -> None:
    """List the webhooks: id, tenant, when it was made, whether it is told, URL."""
    tenant_id = None if tenant is None else parse_tenant_id(tenant)

    async def read(settings: Settings) -> list[Webhook]:
        async with _store(settings) as store:
            tenants: list[TenantId] = await store.list_tenants() if tenant_id is None else [tenant_id]
            return [webhook for each in tenants for webhook in await store.list_webhooks(each)]

    for found in asyncio.run(read(_settings(data_dir))):
        disabled = found.disabled_at_ms
        state = "active" if disabled is None else f"disabled {_show_time(disabled)}"
        made = _show_time(found.created_at_ms)
        typer.echo(f"{found.webhook_id}\t{found.tenant_id}\t{made}\t{state}\t{found.url}")


@webhooks.command("delete")
def delete_webhook(tenant: Tenant, webhook_id: WebhookArgument, data_dir: DataDir = None) -> None:
    """End a webhook, and what waits for it."""
    ids = parse_tenant_id(tenant), parse_webhook_id(webhook_id)

    async def delete(settings: Settings) -> None:
        async with _store(settings) as store:
            await store.delete(*ids)

    asyncio.run(delete(_settings(data_dir)))
    typer.echo(f"Webhook {webhook_id} is deleted.", err=True)


@webhooks.command("enable")
def enable_webhook(tenant: Tenant, webhook_id: WebhookArgument, data_dir: DataDir = None) -> None:
    """Tell a webhook again that answered 410, of what ends from now on."""
    ids = parse_tenant_id(tenant), parse_webhook_id(webhook_id)

    async def enable(settings: Settings) -> None:
        async with _store(settings) as store:
            await store.enable(*ids)

    asyncio.run(enable(_settings(data_dir)))
    typer.echo(f"Webhook {webhook_id} is enabled.", err=True)


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[WebhookStore]:
    """The webhooks: in the shared Redis, in the one of a running server, or in one started for the moment."""
    shared = settings.redis_url
    with nullcontext(shared) if shared else running_or_started(settings.data_dir) as url:
        redis = connect(url, timeout_s=settings.redis_timeout_s)
        try:
            yield WebhookStore(redis, replicas=Replicas.of(redis, settings))
        finally:
            await redis.aclose()


def _settings(data_dir: Path | None) -> Settings:
    settings = load_settings(data_dir=data_dir)
    configure_logs(settings.log_format, settings.log_level)
    return settings


def _show_time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
