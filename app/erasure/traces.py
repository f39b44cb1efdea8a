"""What names a tenant in Redis without its hash tag: members of sets of all tenants, and dead letters."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from redis.asyncio import Redis

from app.batches.keys import OPEN_KEY
from app.domain.ids import JobId, ModelId, TenantId, parse_job_id
from app.domain.job import Lane
from app.errors import InvalidId
from app.jobs import keys
from app.memory.keys import FORGETTING_KEY
from app.redis.errors import redis_errors
from app.redis.members import parse_member
from app.webhooks.keys import TENANTS_KEY as WEBHOOK_TENANTS_KEY

PAGE = 1000


async def list_names(redis: Redis, tenant_id: TenantId) -> AsyncIterator[list[str]]:
    """The names of all keys with the tenant's hash tag, some at a time; those written meanwhile may be missed.

    Cost: the names of all keys of the server are gone through, a thousand for each command.
    """
    cursor: Any = 0
    found: Any
    while True:
        cursor, found = await redis.scan(cursor, match=f"sparke:{{t:{tenant_id}}}:*", count=PAGE)
        if found:
            yield [name.decode() for name in found]
        if cursor == 0:
            return


@redis_errors
async def models_of(redis: Redis, names: Sequence[str]) -> set[ModelId]:
    """The models that some of a tenant's keys name: sets of jobs by their own names, jobs by what they hold.

    A catalogue need not have them any more. Raises StoreUnavailable.
    """
    parts = [
        name.split(":") for name in names
    ]  # sparke, {t, T}, waiting or released or job, model or job's id
    named = {ModelId(part[4]) for part in parts if len(part) == 5 and part[3] in ("waiting", "released")}
    async with redis.pipeline(transaction=False) as pipeline:
        for name, part in zip(names, parts, strict=True):
            if len(part) == 5 and part[3] == "job":
                pipeline.hget(name, "model")
        held: Any = await pipeline.execute()
    return named | {ModelId(model.decode()) for model in held if model is not None}


@redis_errors
async def open_jobs(redis: Redis, tenant_id: TenantId, model: ModelId) -> list[JobId]:
    """The tenant's jobs of a model that have not ended. Raises StoreUnavailable."""
    found = []
    for member in await _members(redis, keys.open_key(model), tenant_id):
        try:
            found.append(parse_member(member, parse_job_id)[1])
        except InvalidId:
            continue
    return found


@redis_errors
async def forget_in_model(redis: Redis, tenant_id: TenantId, model: ModelId) -> int:
    """Removes the tenant from what a model's workers look at. How much that was. Raises StoreUnavailable.

    Entries of the model's stream stay, for its group must be able to count: workers pass over them, since their jobs are
    gone, and they are trimmed. They hold the names of the tenant and the job, and nothing else.
    """
    num_removed = await _remove(redis, keys.open_key(model), tenant_id)
    for lane in Lane:
        num_removed += int(await redis.zrem(keys.turns_key(model, lane), tenant_id))
    letters: Any = await redis.xrange(keys.dead_key(model))
    own = [entry_id for entry_id, fields in letters if fields.get(b"t") == tenant_id.encode()]
    if own:
        num_removed += int(await redis.xdel(keys.dead_key(model), *own))
    return num_removed


@redis_errors
async def forget_elsewhere(redis: Redis, tenant_id: TenantId) -> int:
    """Removes the tenant from the sets of open batches, and of tenants that have webhooks or forget something.

    Raises StoreUnavailable.
    """
    num_listed = 0
    for name in (WEBHOOK_TENANTS_KEY, FORGETTING_KEY):
        num_listed += int(await redis.zrem(name, tenant_id))
    return num_listed + await _remove(redis, OPEN_KEY, tenant_id)


async def _members(redis: Redis, name: str, tenant_id: TenantId) -> list[bytes]:
    return [member async for member, _ in redis.zscan_iter(name, match=f"{tenant_id}/*", count=PAGE)]


async def _remove(redis: Redis, name: str, tenant_id: TenantId) -> int:
    members = await _members(redis, name, tenant_id)
    return int(await redis.zrem(name, *members)) if members else 0
