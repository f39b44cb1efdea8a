"""`sparke keys`: what API keys are made, listed, rotated and revoked with."""

import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer
from redis.asyncio import Redis

from app.audit.log import OpenAct
from app.cli_redis import DataDir, deed_of, list_known, read_settings, run_act, run_on_redis, show_time
from app.domain.audit import Deed
from app.domain.ids import parse_tenant_id
from app.domain.scope import USUAL_SCOPES, parse_scopes
from app.errors import InvalidValue
from app.redis.replicas import Replicas
from app.tenants.keys import DEFAULT_GRACE_S, IssuedKey, KeyRecord, KeyStore, KeyWish, UsedKey

keys = typer.Typer(no_args_is_help=True, help="API keys of tenants; the server may run or not.")

KeyArgument = Annotated[str, typer.Argument(help="The key's id: the 8 digits after sk-sparke-.")]
Life = Annotated[
    str | None,
    typer.Option("--expires-in", help="How long the key works: 90d, 12h, 30m or 45s; if absent, for ever."),
]

_SPAN = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@keys.command("create")
def create_key(  # noqa: PLR0917 - each is an option of the command
    tenant: Annotated[str, typer.Option(help="Whose key: lower-case letters, digits, - and _")],
    name: Annotated[str, typer.Option(help="What to know it by.")] = "",
    scopes: Annotated[
        str, typer.Option(help="What for: some of generate, read, manage and admin, with commas.")
    ] = ",".join(USUAL_SCOPES),
    expires_in: Life = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it, alone, on standard output. It cannot be shown again."""
    tenant_id = parse_tenant_id(tenant)
    wish = KeyWish(name, parse_scopes(filter(None, scopes.split(","))), _parse_life(expires_in))

    deed = deed_of("key.create", tenant=tenant_id)
    _hand_over(_make(data_dir, deed, lambda store: store.issue(tenant_id, wish), begins=True))


@keys.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only the keys of this tenant.")] = None,
    data_dir: DataDir = None,
) -> None:
    """List the keys: id, tenant, when it was made, whether it works, scopes, expiry, last use to an hour, name."""
    tenant_id = None if tenant is None else parse_tenant_id(tenant)

    async def read(redis: Redis, replicas: Replicas) -> list[UsedKey]:
        if tenant_id is not None:
            await (await list_known(redis, replicas)).check(tenant_id)
        return await KeyStore(redis).list_used(tenant_id)

    for used in run_on_redis(read_settings(data_dir=data_dir), read):
        typer.echo(_show(used, int(time.time() * 1000)))


@keys.command("rotate")
def rotate_key(
    key_id: KeyArgument,
    grace_given: Annotated[
        str, typer.Option("--grace", help="How long the old key goes on to work: 7d, 1h, 0s.")
    ] = (f"{DEFAULT_GRACE_S // 3600}h"),
    expires_in: Life = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key that takes another one's place, and print it, alone. The old one works for a grace time still."""
    grace_s, life_s = _parse_duration(grace_given, "--grace"), _parse_life(expires_in)

    deed = deed_of("key.rotate", target=key_id)
    _hand_over(_make(data_dir, deed, lambda store: store.rotate(key_id, grace_s=grace_s, life_s=life_s)))
    typer.echo(f"Key {key_id} works for {grace_given} more at most.", err=True)


@keys.command("revoke")
def revoke_key(key_id: KeyArgument, data_dir: DataDir = None) -> None:
    """End a key at once. Revoking the last one does not open the server."""

    async def revoke(redis: Redis, replicas: Replicas, act: OpenAct) -> KeyRecord:
        record = await KeyStore(redis, replicas=replicas).revoke(key_id)
        act.note(key_tenant=record.tenant_id)
        return record

    deed = deed_of("key.revoke", target=key_id)
    record = run_act(read_settings(data_dir=data_dir), deed, revoke)
    typer.echo(f"Key {key_id} of tenant {record.tenant_id} is revoked.", err=True)


def _hand_over(issued: IssuedKey) -> None:
    typer.echo(issued.key)
    record = issued.record
    typer.echo(
        f"A key of tenant {record.tenant_id} for {', '.join(record.scopes)}."
        " Keep it: it is stored as a digest only.",
        err=True,
    )


def _show(used: UsedKey, now_ms: int) -> str:
    record = used.record
    state: str = record.state(now_ms)
    if state == "revoked":
        state = f"revoked {_show_time(record.revoked_at_ms)}"
    scopes = ",".join(record.scopes)
    columns = [record.key_id, record.tenant_id, show_time(record.created_at_ms), state, scopes]
    return "\t".join(
        [*columns, _show_time(record.expires_at_ms), _show_time(used.last_used_at_ms), record.name]
    )


def _show_time(at_ms: int | None) -> str:
    return "never" if at_ms is None else show_time(at_ms)


def _parse_life(text: str | None) -> int | None:
    return None if text is None else _parse_duration(text, "--expires-in")


def _parse_duration(text: str, option: str) -> int:
    found = _SPAN.fullmatch(text)
    if found is None:
        raise InvalidValue(f"{option} takes a number and s, m, h or d, such as 90d; got {text[:40]!r}")
    return int(found[1]) * _UNITS_S[found[2]]


def _make(
    data_dir: Path | None,
    deed: Deed,
    make: Callable[[KeyStore], Awaitable[IssuedKey]],
    *,
    begins: bool = False,
) -> IssuedKey:
    async def work(redis: Redis, replicas: Replicas, act: OpenAct) -> IssuedKey:
        issued = await make(KeyStore(redis, replicas=replicas))
        record = issued.record
        act.note(new_key=record.key_id, key_tenant=record.tenant_id, scopes=",".join(record.scopes))
        return issued

    return run_act(read_settings(data_dir=data_dir), deed, work, begins=begins)
