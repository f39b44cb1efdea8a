"""`sparke memories`: what tenants' images are pushed away from, seen and forgotten by the operator."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import structlog
import typer
from redis.asyncio import Redis

from app.audit.log import OpenAct
from app.cli_redis import DataDir, deed_of, list_known, read_settings, run_act, run_on_redis, show_time
from app.domain.ids import parse_memory_id, parse_tenant_id
from app.errors import InvalidValue
from app.jobs.remains import RemainsCleaner
from app.jobs.workers import now_ms
from app.memory.forgetting import Forgotten, MemoryForgetter
from app.memory.keys import MemoryKey
from app.memory.overview import EntryPage, EntryQuery, MemoryOverview, MemoryStats
from app.redis.replicas import Replicas

MAX_LISTED = 100

memories = typer.Typer(
    no_args_is_help=True,
    help="What is remembered of tenants' images. Commands with --tenant are the operator's, and the server may run or not; "
    "those with --url ask a running service, with a tenant's key.",
)

Tenant = Annotated[str, typer.Option(help="Whose memory.")]
MemoryArgument = Annotated[str, typer.Argument(help="The memory's id: latent space, dot, name.")]


@memories.command("list")
def list_memories(tenant: Tenant, data_dir: DataDir = None) -> None:
    """List the memories: id, entries, version, bytes, when it was made."""
    tenant_id = parse_tenant_id(tenant)

    async def read(redis: Redis, replicas: Replicas) -> list[MemoryStats]:
        await (await list_known(redis, replicas)).check(tenant_id)
        overview, after = MemoryOverview(redis), None
        found: list[MemoryStats] = []
        while True:
            page = await overview.list_memories(tenant_id, MAX_LISTED, after)
            found += page.memories
            if not page.has_more:
                return found
            after = found[-1].memory.memory_id

    for stats in run_on_redis(read_settings(data_dir=data_dir), read):
        numbers = f"{stats.num_entries}\t{stats.version}\t{stats.size_bytes}"
        typer.echo(f"{stats.memory.memory_id}\t{numbers}\t{show_time(stats.created_at_ms)}")


@memories.command("show")
def show_memory(
    memory_id: MemoryArgument,
    tenant: Tenant,
    *,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LISTED, help="At most so many entries.")] = 20,
    after: Annotated[int | None, typer.Option(min=1, help="Only entries older than this version.")] = None,
    data_dir: DataDir = None,
) -> None:
    """List the entries, the newest first: version, when it was made, seed, image."""
    memory = _key(tenant, memory_id)

    async def read(redis: Redis, _: Replicas) -> EntryPage:
        return await MemoryOverview(redis).list_entries(memory, EntryQuery(limit, "desc", after))

    for version, entry in run_on_redis(read_settings(data_dir=data_dir), read).entries:
        typer.echo(f"{version}\t{show_time(entry.created_at_ms)}\t{entry.seed}\t{entry.image_id}")


@memories.command("forget")
def forget(
    memory_id: MemoryArgument,
    tenant: Tenant,
    version: Annotated[
        list[int] | None, typer.Option(min=1, help="An entry's version; give it several times.")
    ] = None,
    before: Annotated[
        int | None, typer.Option(min=0, help="All entries from before this time (Unix seconds).")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Forget entries for good. Their images, and what is known of their jobs, the service removes while it runs."""
    if (bool(version), before is not None, everything).count(True) != 1:
        raise InvalidValue("give one of --version, --before and --all")

    async def forget_some(forgetter: MemoryForgetter, memory: MemoryKey) -> Forgotten:
        if version:
            return await forgetter.forget_versions(memory, version)
        if before is not None:
            return await forgetter.forget_before(memory, 1000 * before)
        return await forgetter.forget_all(memory)

    _run(_Act(_key(tenant, memory_id), "forget", forget_some), data_dir)


@memories.command("delete")
def delete_memory(memory_id: MemoryArgument, tenant: Tenant, data_dir: DataDir = None) -> None:
    """Forget all of a memory, and the memory. Images go as with `forget`."""
    _run(
        _Act(_key(tenant, memory_id), "memory", lambda forgetter, memory: forgetter.delete(memory)), data_dir
    )


@dataclass(frozen=True, slots=True)
class _Act:
    """Something that is done to a memory, by its name in the log."""

    memory: MemoryKey
    name: str
    deed: Callable[[MemoryForgetter, MemoryKey], Awaitable[Forgotten]]


def _run(act: _Act, data_dir: Path | None) -> None:
    settings = read_settings(data_dir=data_dir)

    async def run(redis: Redis, replicas: Replicas, opened: OpenAct) -> Forgotten:
        forgotten = await act.deed(MemoryForgetter(redis, clock_ms=now_ms, replicas=replicas), act.memory)
        structlog.get_logger().info(
            "memory_forgotten", memory=str(act.memory), act=act.name, num_entries=forgotten.num_entries
        )
        opened.note(num_entries=forgotten.num_entries)
        return forgotten

    name = "memory.delete" if act.name == "memory" else "memory.forget"
    deed = deed_of(name, tenant=act.memory.tenant_id, target=act.memory.memory_id)
    forgotten = run_act(settings, deed, run)
    typer.echo(
        f"Forgotten: {forgotten.num_entries} entries. Jobs that run now may have read them; none that begins will."
        f" The service removes their images, and what is known of their jobs: it looks every {RemainsCleaner.INTERVAL_S:.0f} s"
        " while it runs.",
        err=True,
    )


def _key(tenant: str, memory_id: str) -> MemoryKey:
    return MemoryKey(parse_tenant_id(tenant), *parse_memory_id(memory_id))
