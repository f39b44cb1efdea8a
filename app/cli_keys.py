"""`sparke keys`: what tenants' API keys are made, listed and ended with."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from app.cli_redis import DataDir, read_settings, run_on_redis, show_time
from app.domain.ids import parse_tenant_id
from app.tenants.keys import KeyStore

keys = typer.Typer(no_args_is_help=True, help="API keys of tenants; the server may run or not.")

_T = TypeVar("_T")


@keys.command("create")
def create_key(
    tenant: Annotated[str, typer.Option(help="Whose key: lower-case letters, digits, - and _")],
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it, alone, on standard output. It cannot be shown again."""
    tenant_id = parse_tenant_id(tenant)
    typer.echo(_run(data_dir, lambda store: store.create(tenant_id)))
    typer.echo(f"A key of tenant {tenant_id}. Keep it: it is stored as a digest only.", err=True)


@keys.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only the keys of this tenant.")] = None,
    data_dir: DataDir = None,
) -> None:
    """List the keys: id, tenant, when it was made, whether it works."""
    tenant_id = None if tenant is None else parse_tenant_id(tenant)
    for key in _run(data_dir, lambda store: store.list_keys(tenant_id)):
        revoked = key.revoked_at_ms
        state = "active" if revoked is None else f"revoked {show_time(revoked)}"
        typer.echo(f"{key.key_id}\t{key.tenant_id}\t{show_time(key.created_at_ms)}\t{state}")


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The key's id: the 8 digits after sk-sparke-.")],
    data_dir: DataDir = None,
) -> None:
    """End a key at once. Revoking the last one does not open the server."""
    _run(data_dir, lambda store: store.revoke(key_id))
    typer.echo(f"Key {key_id} is revoked.", err=True)


def _run(data_dir: Path | None, deed: Callable[[KeyStore], Awaitable[_T]]) -> _T:
    settings = read_settings(data_dir=data_dir)
    return run_on_redis(settings, lambda redis, replicas: deed(KeyStore(redis, replicas=replicas)))
