"""What the API does with batches: create one, read one, list them, cancel one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis

from app.batches import codec, keys
from app.domain.batch import Batch, BatchRecord, BatchState
from app.domain.ids import BatchId, TenantId, parse_batch_id
from app.errors import BatchOver, CorruptRecord, InvalidId, NotFound, TooManyBatches
from app.jobs.keys import idempotency_key
from app.jobs.types import Idempotency
from app.redis.errors import redis_errors
from app.redis.members import member_of, parse_member
from app.redis.replicas import Replicas
from app.redis.scripts import load_script

_FULL_RETRY_S = 60
_ABANDONED_MS = 600_000  # no request takes so long between its two writes

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BatchPage:
    """Some batches, the newest first, and whether there are more."""

    batches: tuple[BatchRecord, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch that has not ended, or is about to be written."""

    tenant_id: TenantId
    batch_id: BatchId
    created_at_ms: int


class BatchStore:
    """Records of the batches of all tenants. All methods raise StoreUnavailable where Redis does not answer.

    New batches and cancels wait for replicas where those are asked for: NotReplicated, and they may yet stand.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        max_open_per_tenant: int,
        idempotency_ttl_s: int = 86_400,
        clock_ms: Callable[[], int],
        replicas: Replicas | None = None,
    ) -> None:
        self._redis = redis
        self._replicas = replicas or Replicas(redis)
        self._idempotency_ttl_s = idempotency_ttl_s
        self._max_open = max_open_per_tenant
        self._clock_ms = clock_ms
        self._create = load_script(redis, "app.batches", "create")
        self._cancel = load_script(redis, "app.batches", "cancel")

    @redis_errors
    async def create(self, batch: Batch, idempotency: Idempotency | None = None) -> BatchRecord:
        """Makes the batch durable; the same one again changes nothing. The batch that stands for it.

        That is the first one where the idempotency key had one. Raises TooManyBatches, and IdempotencyMismatch where the
        key stands for another request. After StoreUnavailable the batch may be there or not.
        """
        tenant_id, batch_id = batch.tenant_id, batch.batch_id
        member = member_of(tenant_id, batch_id)
        await self._redis.zadd(keys.OPEN_KEY, {member: batch.created_at_ms})
        touched = [
            keys.batch_key(tenant_id, batch_id),
            keys.index_key(tenant_id),
            keys.open_ids_key(tenant_id),
            keys.expiries_key(tenant_id),
        ]
        arguments: list[Any] = [batch_id, codec.encode_batch(batch), self._clock_ms(), self._max_open]
        if idempotency is not None:
            touched.append(idempotency_key(tenant_id, idempotency.key))
            arguments += [idempotency.fingerprint, 1000 * self._idempotency_ttl_s]
        written = await self._replicas.run(self._create, touched, arguments)
        outcome, *found = written.reply
        if outcome != b"created":
            await self._redis.zrem(keys.OPEN_KEY, member)
        if outcome == b"full":
            raise TooManyBatches(
                f"you have {found[0]} unfinished batches, which is the most; wait until one ends, or cancel one",
                retry_after_s=_FULL_RETRY_S,
            )
        if outcome == b"other" and idempotency is not None:
            raise idempotency.mismatch
        written.checked()
        return await self.get(tenant_id, BatchId(found[0].decode()) if outcome == b"known" else batch_id)

    @redis_errors
    async def standing_for(self, tenant_id: TenantId, idempotency: Idempotency) -> BatchRecord | None:
        """The batch that the key stands for; None where it stands for none yet. Raises IdempotencyMismatch."""
        name = idempotency_key(tenant_id, idempotency.key)
        written = await self._replicas.command("HMGET", name, "batch_id", "fingerprint")
        batch_id, fingerprint = written.reply
        if fingerprint is None:
            return None
        if fingerprint != idempotency.fingerprint.encode() or batch_id is None:
            raise idempotency.mismatch
        written.checked()
        return await self.get(tenant_id, BatchId(batch_id.decode()))

    @redis_errors
    async def get(self, tenant_id: TenantId, batch_id: BatchId) -> BatchRecord:
        """What is known of a batch now. Raises NotFound and CorruptRecord."""
        found: Any = await self._redis.hgetall(keys.batch_key(tenant_id, batch_id))
        if not found:
            raise no_such_batch(batch_id)
        return codec.decode_record(found, where=f"batch {batch_id}")

    @redis_errors
    async def list_batches(self, tenant_id: TenantId, limit: int, after: BatchId | None = None) -> BatchPage:
        """A tenant's batches from the one after `after`, which need not be there any more.

        A record that cannot be read is left out and logged: it must not hide the others.
        """
        found: list[BatchRecord] = []
        while len(found) <= limit:
            last = f"({after}" if after else "+"
            ids: Any = await self._redis.zrevrangebylex(
                keys.index_key(tenant_id), last, "-", start=0, num=limit + 1
            )
            if not ids:
                break
            batch_ids = [BatchId(batch_id.decode()) for batch_id in ids]
            after = batch_ids[-1]
            found += await self._read(tenant_id, batch_ids)
        return BatchPage(tuple(found[:limit]), len(found) > limit)

    @redis_errors
    async def cancel(self, tenant_id: TenantId, batch_id: BatchId) -> BatchRecord:
        """Asks for a batch's end; a second call changes nothing. Raises NotFound, and BatchOver where it is too late."""
        touched = [keys.batch_key(tenant_id, batch_id)]
        written = await self._replicas.run(self._cancel, touched, [self._clock_ms()])
        state = written.checked().decode()
        if not state:
            raise no_such_batch(batch_id)
        if state not in (BatchState.CANCELLING, BatchState.CANCELLED):
            raise BatchOver(f"batch {batch_id} is {state} and can no longer be cancelled")
        return await self.get(tenant_id, batch_id)

    @redis_errors
    async def list_open(self, limit: int) -> list[OpenBatch]:
        """Open batches of all tenants, the oldest first."""
        found: Any = await self._redis.zrange(keys.OPEN_KEY, 0, limit - 1, withscores=True)
        open_batches = []
        for member, created_at_ms in found:
            try:
                tenant_id, batch_id = parse_member(member, parse_batch_id)
            except InvalidId as error:
                _log.error("open_batch_unreadable", error=error.message)
                await self._redis.zrem(keys.OPEN_KEY, member)
            else:
                open_batches.append(OpenBatch(tenant_id, batch_id, int(created_at_ms)))
        return open_batches

    @redis_errors
    async def count_open(self) -> int:
        """How many batches have not ended."""
        return int(await self._redis.zcard(keys.OPEN_KEY))

    @redis_errors
    async def forget(self, tenant_id: TenantId, batch_id: BatchId) -> None:
        """Removes an ended batch from the open ones."""
        await self._redis.zrem(keys.OPEN_KEY, member_of(tenant_id, batch_id))

    def is_abandoned(self, batch: OpenBatch) -> bool:
        """True where an open batch that has no record will not get one any more."""
        return self._clock_ms() - batch.created_at_ms > _ABANDONED_MS

    async def _read(self, tenant_id: TenantId, batch_ids: Sequence[BatchId]) -> list[BatchRecord]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for batch_id in batch_ids:
                pipeline.hgetall(keys.batch_key(tenant_id, batch_id))
            answers: Any = await pipeline.execute()
        records = []
        for batch_id, found in zip(batch_ids, answers, strict=True):
            try:
                if found:
                    records.append(codec.decode_record(found, where=f"batch {batch_id}"))
            except CorruptRecord as error:
                _log.warning("batch_record_skipped", batch_id=batch_id, error=error.message)
        return records


def no_such_batch(batch_id: str) -> NotFound:
    """The error for an id that names no batch of the tenant."""
    return NotFound(f"there is no batch {batch_id[:80]!r}; it has expired, or never was yours")
