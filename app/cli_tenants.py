"""`sparke tenants`: what tenants are listed, bounded, looked at and deleted with."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from redis.asyncio import Redis

from app.audit.log import OpenAct
from app.cli_redis import DataDir, deed_of, list_known, read_settings, run_act, run_on_redis
from app.domain.audit import Deed, Fact
from app.domain.ids import parse_tenant_id
from app.domain.quota import DAY_MS, DayUsage, QuotaOverrides, Quotas
from app.jobs.workers import now_ms
from app.redis.replicas import Replicas
from app.settings import Settings
from app.tenants.keys import KeyStore
from app.tenants.quotas import QuotaBook
from app.tenants.registry import TenantRegistry
from app.tenants.usage import UsageStore

tenants = typer.Typer(
    no_args_is_help=True, help="Tenants, their quotas and usage; the server may run or not."
)

TenantArgument = Annotated[str, typer.Argument(help="The tenant's name.")]
_NAMES = tuple(QuotaOverrides.__slots__)
_PAGE = 1000
_T = TypeVar("_T")


@tenants.command("list")
def list_tenants(data_dir: DataDir = None) -> None:
    """List the tenants: name, and whether it is being deleted."""

    async def read(hands: _Hands, _settings: Settings) -> list[str]:
        after, lines = None, list[str]()
        deleting = await hands.registry.deletions()
        while True:
            page = await hands.registry.list_tenants(_PAGE, after)
            lines += [f"{name}\t{'deleting' if name in deleting else 'active'}" for name in page.tenants]
            if not page.has_more:
                return lines
            after = page.tenants[-1]

    for line in _run(read, data_dir):
        typer.echo(line)


@tenants.command("show")
def show_tenant(tenant: TenantArgument, data_dir: DataDir = None) -> None:
    """Show what holds for a tenant: each quota, and whether it is its own or the service's."""
    tenant_id = parse_tenant_id(tenant)

    async def read(hands: _Hands, settings: Settings) -> tuple[Quotas, QuotaOverrides]:
        await hands.registry.check(tenant_id)
        overrides = await QuotaBook(hands.redis, settings.quotas).overrides(tenant_id)
        return overrides.over(settings.quotas), overrides

    quotas, overrides = _run(read, data_dir)
    for name in _NAMES:
        value, own = getattr(quotas, name), getattr(overrides, name)
        shown = "no bound" if value is None else value
        typer.echo(f"{name}\t{shown}\t{'default' if own is None else 'set'}")


@tenants.command("quotas")
def set_quotas(  # noqa: PLR0917 - each is an option of the command
    tenant: TenantArgument,
    requests_per_minute: Annotated[int | None, typer.Option(help="Requests a minute.")] = None,
    images_per_day: Annotated[int | None, typer.Option(help="Images a day of UTC.")] = None,
    max_waiting_jobs: Annotated[int | None, typer.Option(help="Jobs that may wait for a model.")] = None,
    max_memory_entries: Annotated[int | None, typer.Option(help="Entries in all memories.")] = None,
    max_stored_bytes: Annotated[int | None, typer.Option(help="Bytes of files and images.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Set a tenant's quotas, in place of all that was set before; what is not named is the service's default."""
    tenant_id = parse_tenant_id(tenant)
    overrides = QuotaOverrides(
        requests_per_minute, images_per_day, max_waiting_jobs, max_memory_entries, max_stored_bytes
    )

    async def write(hands: _Hands, settings: Settings) -> None:
        await hands.registry.check(tenant_id)
        numbers = {name: getattr(overrides, name) for name in _NAMES}
        hands.note(**{name: number for name, number in numbers.items() if number is not None})
        await QuotaBook(hands.redis, settings.quotas).set(tenant_id, overrides)

    _run(write, data_dir, deed_of("tenant.quotas", tenant=tenant_id))
    typer.echo(f"The quotas of tenant {tenant_id} are set.", err=True)


@tenants.command("usage")
def show_usage(
    tenant: TenantArgument,
    days: Annotated[int, typer.Option(min=1, max=366, help="So many days, today's the first.")] = 31,
    data_dir: DataDir = None,
) -> None:
    """List what a tenant used: day, requests, jobs, images."""
    tenant_id = parse_tenant_id(tenant)

    async def read(hands: _Hands, settings: Settings) -> list[DayUsage]:
        await hands.registry.check(tenant_id)
        usage = UsageStore(
            hands.redis, ttl_s=settings.kept_usage_s, image_ttl_s=settings.image_ttl_s, clock_ms=now_ms
        )
        return await usage.read_days(tenant_id, days)

    for used in _run(read, data_dir):
        date = datetime.fromtimestamp(used.day * DAY_MS / 1000, UTC).strftime("%Y-%m-%d")
        typer.echo(f"{date}\t{used.num_requests}\t{used.num_jobs}\t{used.num_images}")


@tenants.command("delete")
def delete_tenant(
    tenant: TenantArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Delete a tenant: its keys at once; whatever else it has, by the server as it runs."""
    tenant_id = parse_tenant_id(tenant)
    if not yes:
        typer.confirm(f"Delete tenant {tenant_id} with all its images and memories?", abort=True, err=True)

    async def delete(hands: _Hands, _settings: Settings) -> int:
        await hands.registry.check(tenant_id)
        await hands.registry.ask_deletion(tenant_id)
        num_keys = await hands.keys.remove_all(tenant_id)
        hands.note(num_keys=num_keys)
        return num_keys

    num_keys = _run(delete, data_dir, deed_of("tenant.delete", tenant=tenant_id))
    typer.echo(
        f"Tenant {tenant_id} has lost {num_keys} keys, and is being deleted while the server runs;"
        " `sparke tenants list` names it until nothing of it is left.",
        err=True,
    )


def _run(
    work: Callable[["_Hands", Settings], Awaitable[_T]], data_dir: Path | None, deed: Deed | None = None
) -> _T:
    """What the work gives. With a deed it is an act, which the audit log has."""
    settings = read_settings(data_dir=data_dir)

    async def run(redis: Redis, replicas: Replicas, act: OpenAct | None = None) -> _T:
        registry = await list_known(redis, replicas)
        return await work(_Hands(redis, registry, KeyStore(redis, replicas=replicas), act), settings)

    return run_on_redis(settings, run) if deed is None else run_act(settings, deed, run)


@dataclass(frozen=True, slots=True)
class _Hands:
    """What the commands work with."""

    redis: Redis
    registry: TenantRegistry
    keys: KeyStore
    act: OpenAct | None = None

    def note(self, **facts: Fact) -> None:
        """Tells the audit log more of an act."""
        if self.act is not None:
            self.act.note(**facts)
