"""Brings deletions of tenants to their end, from wherever a process that was killed had left them."""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from app.domain.ids import ModelId, TenantId
from app.erasure import traces
from app.errors import NotFound
from app.jobs.place import queues_of
from app.jobs.store import JobStore
from app.objects.folder import ObjectFolder
from app.redis.errors import redis_errors
from app.redis.turns import take_turn
from app.tenants.keys import KeyStore
from app.tenants.registry import Deletion, TenantRegistry

_LOOK_AGAIN_MS = 5_000
_TURN_S = 60.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ErasedStores:
    """Where tenants leave something: jobs to end, keys, folders of the object store, and the models of the catalogue."""

    jobs: JobStore
    keys: KeyStore
    folders: Sequence[ObjectFolder]
    models: Collection[ModelId]


class TenantEraser:
    """Looks for what is left of tenants that are being deleted, and removes it. Every step may be done again.

    Requests that were let in before the keys were gone, and workers with a job in hand, may still write. So a deletion
    ends only when a look finds nothing that comes `linger_s` after the last one that found something: longer than any of
    those can last.
    """

    def __init__(
        self,
        redis: Redis,
        registry: TenantRegistry,
        stores: ErasedStores,
        *,
        linger_s: float,
        clock_ms: Callable[[], int],
    ) -> None:
        self._redis = redis
        self._registry = registry
        self._stores = stores
        self._linger_ms = int(1000 * linger_s)
        self._clock_ms = clock_ms

    async def list_known(self) -> None:
        """Lists the tenants of keys from before tenants were listed. Once in a process is enough."""
        await self._registry.add(await self._stores.keys.list_tenants())

    async def look(self) -> int:
        """One look for each deletion for which it is time, unless another process has it in hand. How many have ended.

        Raises StoreUnavailable; the next call goes on. Cost: one command where nobody is being deleted.
        """
        num_ended = 0
        for tenant_id, deletion in (await self._registry.deletions()).items():
            if self._clock_ms() < self._next_look_ms(deletion):
                continue
            turn = f"sparke:tenant-erasure:{tenant_id}"
            if await take_turn(self._redis, turn, interval_s=_TURN_S):
                try:
                    num_ended += await self._bring_on(tenant_id, deletion)
                finally:
                    await self._redis.delete(turn)
        return num_ended

    def _next_look_ms(self, deletion: Deletion) -> int:
        """At once, then every few seconds while something is found, then once more, when nobody can write any more."""
        if deletion.looked_at_ms is None:
            return 0
        if deletion.is_empty:
            return deletion.found_at_ms + self._linger_ms
        return deletion.looked_at_ms + min(_LOOK_AGAIN_MS, self._linger_ms)

    async def _bring_on(self, tenant_id: TenantId, deletion: Deletion) -> bool:
        """One look; True where it was the last."""
        is_last = deletion.is_empty
        num_keys, num_objects = await self.erase(tenant_id, with_partial=is_last)
        now_ms = self._clock_ms()
        if num_keys + num_objects == 0 and is_last:
            await self._rewrite()
            await self._registry.end_deletion(tenant_id)
            _log.info(
                "tenant_deleted", tenant_id=tenant_id, keys=deletion.num_keys, objects=deletion.num_objects
            )
            return True
        found_at_ms = now_ms if num_keys + num_objects else min(deletion.found_at_ms, now_ms - 1)
        found = replace(
            deletion,
            looked_at_ms=now_ms,
            found_at_ms=found_at_ms,
            num_keys=deletion.num_keys + num_keys,
            num_objects=deletion.num_objects + num_objects,
        )
        await self._registry.note(tenant_id, found)
        return False

    async def erase(self, tenant_id: TenantId, *, with_partial: bool = False) -> tuple[int, int]:
        """Removes all that is found of a tenant now: how many keys and members in Redis, how many objects.

        Jobs are cancelled first, so that workers and followers hear of it. `with_partial` removes parts of objects too,
        whose writers have ended by then.
        """
        num_removed = await self._stores.keys.remove_all(tenant_id)
        models = set(queues_of(self._stores.models))
        async for page in traces.list_names(self._redis, tenant_id):
            models |= await traces.models_of(self._redis, page)
        for model in models:
            for job_id in await traces.open_jobs(self._redis, tenant_id, model):
                with suppress(NotFound):
                    await self._stores.jobs.cancel(tenant_id, job_id)
            num_removed += await traces.forget_in_model(self._redis, tenant_id, model)
        num_removed += await traces.forget_elsewhere(self._redis, tenant_id)
        num_objects = 0
        for folder in self._stores.folders:
            num_objects += await folder.delete_under(tenant_id, with_partial=with_partial)
        return num_removed + await self._unlink(tenant_id), num_objects

    @redis_errors
    async def _rewrite(self) -> None:
        """Has Redis write its file anew, which had all that was ever written. Managed servers may refuse that."""
        try:
            facts: Any = await self._redis.info("persistence")
            if facts["aof_enabled"]:
                await self._redis.bgrewriteaof()
        except ResponseError as error:
            _log.warning("file_not_rewritten", error=str(error))

    @redis_errors
    async def _unlink(self, tenant_id: TenantId) -> int:
        num_removed = 0
        async for page in traces.list_names(self._redis, tenant_id):
            num_removed += int(await self._redis.unlink(*page))
        return num_removed
