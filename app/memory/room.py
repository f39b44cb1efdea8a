"""The quota of entries, asked by the very script that makes a memory of many: several at once find no more room than there is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.commands.core import AsyncScript

from app.domain.ids import LatentSpace, MemoryName, TenantId
from app.errors import MemoryFull
from app.memory.keys import MemoryKey, index_key, log_key
from app.redis.replicas import Replicas, Written

ROOM = ("app.memory/room",)  # what stands before the scripts that ask


@dataclass(frozen=True, slots=True)
class EntryRoom:
    """How many entries a tenant's memories may hold together; None: any number."""

    tenant_id: TenantId
    most_entries: int | None = None


async def run_where_room(
    script: AsyncScript, keys: Sequence[str], args: Sequence[Any], *, room: EntryRoom, replicas: Replicas
) -> Written:
    """Runs a script with keys and arguments of its own, followed by those that `lacks_room` asks for. Raises MemoryFull.

    Cost: where there is a bound one round trip more, and two commands for each memory; again where others came meanwhile.
    """
    if room.most_entries is None:
        return await replicas.run(script, keys, [*args, ""])
    while True:
        members: Any = await script.registered_client.smembers(index_key(room.tenant_id))
        split = [member.decode().split(":", 1) for member in members]
        logs = [
            log_key(MemoryKey(room.tenant_id, LatentSpace(space), MemoryName(name))) for space, name in split
        ]
        written = await replicas.run(script, [*keys, *logs], [*args, room.most_entries, *members])
        if written.reply == b"no room":
            raise MemoryFull(
                f"with these entries your memories would hold more than {room.most_entries}, which is the most; forget some"
            )
        if written.reply != b"others":
            return written
