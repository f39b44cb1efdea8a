"""All open batches side by side: every API process drives some, each under a lease."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import structlog

from app.batches.drive import BatchDrive
from app.batches.held import HeldBatch, LeaseLost
from app.batches.output import OutputStores
from app.batches.store import BatchStore, OpenBatch
from app.batches.types import BatchLimits
from app.domain.ids import BatchId, TenantId
from app.errors import NotFound, ServiceError, StoreUnavailable
from app.redis.cancelling import end_task
from app.telemetry.metrics import Metrics

_MOST_LISTED = 5000
_TRIES_PER_SLOT = 4
_PAUSE_S = 60.0  # before a batch that met a fault of ours, or a store that stays away, is tried again

_log = structlog.get_logger(__name__)


class BatchDriver:
    """Takes open batches that nobody drives, a bounded number at a time, and tenants in turn.

    Where more batches wait than there is room for, each goes back to the others after a while.
    """

    def __init__(
        self,
        batches: BatchStore,
        stores: OutputStores,
        limits: BatchLimits,
        metrics: Metrics,
        *,
        clock_ms: Callable[[], int],
    ) -> None:
        self._batches = batches
        self._stores = stores
        self._limits = limits
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._running: dict[BatchId, tuple[OpenBatch, asyncio.Task[None]]] = {}
        self._tried_at_s: dict[BatchId, float] = {}
        self._served_at_s: dict[TenantId, float] = {}
        self._again_at_s: dict[BatchId, float] = {}
        self._is_crowded = False

    async def run(self) -> None:
        """Drives batches until it is cancelled; then `close` ends what is under way."""
        while True:
            try:
                await self.look()
            except ServiceError as error:
                _log.warning("batches_not_seen", error=error.message)
            except Exception:  # noqa: BLE001 - this must not be the last look
                _log.exception("batches_not_seen")
            await asyncio.sleep(self._limits.poll_s)

    async def close(self) -> None:
        """Ends what is under way and lets go of the leases, so that others go on at once."""
        await asyncio.gather(*(end_task(task) for _, task in self._running.values()))
        self._running.clear()

    async def look(self) -> None:
        """Takes as many waiting batches as there is room for. Raises StoreUnavailable."""
        self._running = {name: run for name, run in self._running.items() if not run[1].done()}
        found = await self._batches.list_open(_MOST_LISTED)
        self._metrics.batches_open.set(await self._batches.count_open())
        self._forget_all_but(found)
        held_back = self._running.keys() | self._again_at_s.keys()
        waiting = self._in_turn([batch for batch in found if batch.batch_id not in held_back])
        num_free = self._limits.max_driven - len(self._running)
        self._is_crowded = len(waiting) > num_free
        for batch in waiting[: _TRIES_PER_SLOT * num_free]:
            if len(self._running) >= self._limits.max_driven:
                return
            self._tried_at_s[batch.batch_id] = self._served_at_s[batch.tenant_id] = time.monotonic()
            await self._try(batch)

    def _forget_all_but(self, found: list[OpenBatch]) -> None:
        now_s = time.monotonic()
        names = {batch.batch_id for batch in found}
        tenants = {batch.tenant_id for batch in found}
        self._tried_at_s = {name: at_s for name, at_s in self._tried_at_s.items() if name in names}
        self._served_at_s = {tenant: at_s for tenant, at_s in self._served_at_s.items() if tenant in tenants}
        self._again_at_s = {name: at_s for name, at_s in self._again_at_s.items() if at_s > now_s}

    def _in_turn(self, waiting: list[OpenBatch]) -> list[OpenBatch]:
        """The order in which batches are tried.

        A tenant's next one comes after everybody else's first; then tenants and batches that were tried long ago.
        """
        num_before = Counter(batch.tenant_id for batch, _ in self._running.values())
        ranked = []
        for batch in sorted(waiting, key=lambda b: (self._tried_at_s.get(b.batch_id, 0.0), b.created_at_ms)):
            tenant_id = batch.tenant_id
            ranked.append(((num_before[tenant_id], self._served_at_s.get(tenant_id, 0.0)), batch))
            num_before[tenant_id] += 1
        return [batch for _, batch in sorted(ranked, key=lambda pair: pair[0])]

    async def _try(self, batch: OpenBatch) -> None:
        held = HeldBatch(self._stores.redis, batch.tenant_id, batch.batch_id, clock_ms=self._clock_ms)
        if await held.acquire(self._limits.lease_s):
            task = asyncio.create_task(self._drive(batch, held), name=f"batch-{batch.batch_id}")
            self._running[batch.batch_id] = (batch, task)

    async def _drive(self, batch: OpenBatch, held: HeldBatch) -> None:
        drive = BatchDrive(
            held, self._stores, self._limits, self._metrics, is_crowded=lambda: self._is_crowded
        )
        try:
            async with held.kept(self._limits.lease_s):
                await self._drive_on(batch, drive)
        except LeaseLost:
            _log.warning("batch_lease_lost", batch_id=batch.batch_id)
        except NotFound:
            await self._forget_if_abandoned(batch)
        except Exception:  # noqa: BLE001 - the other batches go on; this one is tried again
            _log.exception("batch_failed_to_go_on", batch_id=batch.batch_id)
            self._again_at_s[batch.batch_id] = time.monotonic() + _PAUSE_S

    async def _forget_if_abandoned(self, batch: OpenBatch) -> None:
        """An open batch without a record is about to get one, or was given up before it had."""
        self._again_at_s[batch.batch_id] = time.monotonic() + self._limits.poll_s
        if self._batches.is_abandoned(batch):
            await self._batches.forget(batch.tenant_id, batch.batch_id)

    async def _drive_on(self, batch: OpenBatch, drive: BatchDrive) -> None:
        """Goes on where a store was away for a while; the lease says whether the batch is still ours.

        One that stays away may be so for this process alone, so the batch is left to others then.
        """
        away_since_s: float | None = None
        while True:
            began_s = time.monotonic()
            try:
                has_ended = await drive.run()
                if has_ended:
                    await self._batches.forget(batch.tenant_id, batch.batch_id)
            except StoreUnavailable as error:
                now_s, patience_s = time.monotonic(), self._limits.patience_s
                if away_since_s is None or now_s - began_s > patience_s:  # else it had gone on in between
                    away_since_s = now_s
                    _log.warning("batch_waits_for_store", batch_id=batch.batch_id, error=error.message)
                elif now_s - away_since_s > patience_s:
                    _log.warning("batch_left_to_others", batch_id=batch.batch_id, error=error.message)
                    self._again_at_s[batch.batch_id] = now_s + _PAUSE_S
                    return
            else:
                return
            await asyncio.sleep(self._limits.poll_s)
