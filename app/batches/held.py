"""A batch under a lease: what one process at a time may write of it."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import structlog
from redis.asyncio import Redis

from app.batches import codec, keys
from app.domain.batch import BatchRecord, BatchState, Cursor, LineFault, RefusedLine
from app.domain.ids import BatchId, TenantId
from app.errors import NotFound, StoreUnavailable
from app.redis.cancelling import end_task
from app.redis.errors import redis_errors
from app.redis.scripts import load_script
from app.webhooks.keys import TELL, outbox_key, webhooks_key

Fields = Mapping[str, str | int | bytes]  # of the record's hash
_BAD_TTL_S = 3 * 86_400

_log = structlog.get_logger(__name__)


class LeaseLost(Exception):
    """Another process may have the batch now; whatever was to be written was not."""


class HeldBatch:
    """One batch that this process drives. Every write looks at the lease's token first, and raises LeaseLost without it.

    All methods raise StoreUnavailable where Redis does not answer, and may then be called again.
    """

    def __init__(
        self, redis: Redis, tenant_id: TenantId, batch_id: BatchId, *, clock_ms: Callable[[], int]
    ) -> None:
        self.tenant_id = tenant_id
        self.batch_id = batch_id
        self.clock_ms = clock_ms
        self._redis = redis
        self._token = secrets.token_hex(16)
        self._key = keys.batch_key(tenant_id, batch_id)
        self._lease = keys.lease_key(tenant_id, batch_id)
        self._flight = keys.flight_key(tenant_id, batch_id)
        self._bad = keys.bad_key(tenant_id, batch_id)
        self._refused = keys.refused_key(tenant_id, batch_id)
        load = partial(load_script, redis, "app.batches")
        self._extend, self._move, self._end = load("extend"), load("move"), load("end", after=[TELL])
        self._advance, self._count, self._keep_value = load("advance"), load("count"), load("keep")
        self._take_up, self._set = load("take_up"), load("set")

    @redis_errors
    async def acquire(self, lease_s: float) -> bool:
        """True where nobody held the batch and this process does now."""
        taken = await self._redis.set(self._lease, self._token, nx=True, px=int(lease_s * 1000))
        return bool(taken) or await self._redis.get(self._lease) == self._token.encode()

    @asynccontextmanager
    async def kept(self, lease_s: float, *, every_s: float | None = None) -> AsyncIterator[None]:
        """Extends the lease for as long as the context lasts, three times in its length, and lets go of it then."""
        keeping = asyncio.create_task(self._keep(lease_s, every_s or lease_s / 3), name="batch-lease")
        try:
            yield
        finally:
            await end_task(keeping)
            with suppress(StoreUnavailable):  # it ends by itself
                await self._hold_for(0)

    @redis_errors
    async def read(self) -> BatchRecord:
        """The record. Raises NotFound and CorruptRecord."""
        found: Any = await self._redis.hgetall(self._key)
        if not found:
            raise NotFound(f"there is no batch {self.batch_id}")
        return codec.decode_record(found, where=f"batch {self.batch_id}")

    @redis_errors
    async def is_in(self, state: BatchState) -> bool:
        """Whether the batch is in that state now."""
        found: Any = await self._redis.hget(self._key, "state")
        return bool(found == state.encode())

    @redis_errors
    async def move(self, before: BatchState, after: BatchState, fields: Fields | None = None) -> None:
        """Moves the batch from one state to another and sets fields, unless it is in a third one."""
        arguments: list[Any] = [self._token, before, after, self.clock_ms(), *_flat(fields)]
        _unless_lost(await self._move([self._key, self._lease], arguments))

    @redis_errors
    async def end(
        self,
        before: BatchState,
        after: BatchState,
        ttl_s: int,
        fields: Fields | None = None,
    ) -> None:
        """Ends the batch, unless it is in another state than `before`. Its record then lives for `ttl_s`."""
        places = [
            self._key,
            self._lease,
            keys.open_ids_key(self.tenant_id),
            keys.expiries_key(self.tenant_id),
            self._flight,
            self._bad,
            self._refused,
            webhooks_key(self.tenant_id),
            outbox_key(self.tenant_id),
        ]
        now_ms = self.clock_ms()
        arguments: list[Any] = [
            self._token,
            before,
            after,
            now_ms,
            self.batch_id,
            ttl_s * 1000,
            *_flat(fields),
        ]
        _unless_lost(await self._end(places, arguments))

    @redis_errors
    async def was_ended_here(self) -> bool:
        """Whether the batch has ended under this very lease, with an answer or without one."""
        found: Any = await self._redis.hget(self._key, "ended_by")
        return bool(found == self._token.encode())

    @redis_errors
    async def advance(
        self,
        before: Cursor,
        after: Cursor,
        lines: Sequence[int],
        refused: Mapping[int, RefusedLine] | None = None,
        *,
        num_failed: int = 0,
    ) -> bool:
        """Notes that lines are jobs now, that others were refused, and how many failed at once.

        False where the batch takes none any more.
        """
        arguments: list[Any] = [self._token, before.line, after.line, after.byte, num_failed]
        pairs = [part for line, one in (refused or {}).items() for part in (line, codec.encode_refused(one))]
        places = [self._key, self._lease, self._flight, self._refused]
        state = _unless_lost(await self._advance(places, [*arguments, len(pairs) // 2, *pairs, *lines]))
        return state is BatchState.IN_PROGRESS

    @redis_errors
    async def take_up(self, lines: Sequence[int]) -> bool:
        """Notes that lines which had been refused are jobs now. False where the batch takes none any more."""
        places = [self._key, self._lease, self._flight, self._refused]
        return _unless_lost(await self._take_up(places, [self._token, *lines])) is BatchState.IN_PROGRESS

    @redis_errors
    async def read_refused(self) -> dict[int, RefusedLine]:
        """The lines that were refused and are no jobs, by number. Raises CorruptRecord."""
        found: Any = await self._redis.hgetall(self._refused)
        where = f"batch {self.batch_id}"
        return {int(line): codec.decode_refused(value, where=where) for line, value in found.items()}

    @redis_errors
    async def tell(self, held_up: LineFault | None, faults: tuple[LineFault, ...]) -> None:
        """Has the record say what holds lines up, if anything does, and which lines have a fault."""
        fields = {"held_up": codec.encode_held_up(held_up), "faults": codec.encode_faults(faults)}
        if not await self._set([self._key, self._lease], [self._token, *_flat(fields)]):
            raise LeaseLost

    @redis_errors
    async def count(self, ended: Mapping[int, BatchState]) -> tuple[int, int]:
        """Counts lines in flight as COMPLETED or FAILED. The numbers of each that had not been counted before."""
        pairs = [text for line, outcome in ended.items() for text in (line, outcome.value)]
        answer: Any = await self._count([self._key, self._lease, self._flight], [self._token, *pairs])
        if not answer:
            raise LeaseLost
        return int(answer[0]), int(answer[1])

    @redis_errors
    async def lines_in_flight(self) -> set[int]:
        """The lines that are jobs and not counted yet."""
        found: Any = await self._redis.smembers(self._flight)
        return {int(line) for line in found}

    @redis_errors
    async def write_bad_lines(self, lines: Iterable[int]) -> None:
        """Keeps which lines have a fault."""
        bits = bytearray()
        for line in lines:
            bits.extend(bytes(max(0, line // 8 + 1 - len(bits))))
            bits[line // 8] |= 1 << line % 8
        if not await self._keep_value(
            [self._lease, self._bad], [self._token, bytes(bits), _BAD_TTL_S * 1000]
        ):
            raise LeaseLost

    @redis_errors
    async def read_bad_lines(self) -> frozenset[int]:
        """The lines that `write_bad_lines` was given."""
        bits: Any = await self._redis.get(self._bad) or b""
        return frozenset(
            8 * place + bit for place, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1
        )

    async def _keep(self, lease_s: float, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                if not await self._hold_for(lease_s):
                    return
            except StoreUnavailable as error:
                _log.warning("batch_lease_not_extended", batch_id=self.batch_id, error=error.message)

    @redis_errors
    async def _hold_for(self, lease_s: float) -> bool:
        return bool(await self._extend([self._lease], [self._token, int(lease_s * 1000)]))


def _unless_lost(answer: Any) -> BatchState:
    if not answer:
        raise LeaseLost
    return BatchState(answer.decode())


def _flat(fields: Fields | None) -> list[str | int | bytes]:
    return [part for pair in (fields or {}).items() for part in pair]
