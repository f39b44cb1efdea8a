"""Waits for jobs to end, for every request of an API process, over one connection."""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from redis.asyncio import Redis

from app.domain.ids import JobId, ModelId, TenantId
from app.domain.job import JobRecord, JobState
from app.errors import NoWorker, StoreUnavailable, Unavailable, WaitTimeout
from app.jobs.arrivals import NO_WORKER
from app.jobs.keys import FINISHED_CHANNEL
from app.jobs.store import JobStore
from app.jobs.wakeups import Wakeups
from app.jobs.workers import WorkerRegistry
from app.redis.cancelling import wait_at_most


class JobWaiter:
    """Wakes waiters by notification, and looks every `poll_s` for what no notification tells: that no worker is there.

    An async context manager. Any number of tasks may wait, also for the same job. An outage of Redis of up to
    `outage_s` is waited for. A worker that dies with the job is no concern here: another gets it.
    """

    def __init__(
        self,
        redis: Redis,
        store: JobStore,
        registry: WorkerRegistry,
        *,
        no_worker_grace_s: float = 10.0,
        poll_s: float = 1.0,
        outage_s: float = 10.0,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._registry = registry
        self._no_worker_grace_s = no_worker_grace_s
        self._poll_s = poll_s
        self._outage_s = outage_s
        self._monotonic_s = monotonic_s
        self._wakeups = Wakeups(redis, [FINISHED_CHANNEL])
        self._served_until_s: dict[ModelId, float] = {}
        self._lets_go = False

    def let_go(self) -> None:
        """From now on nobody waits for what is not done: it is Unavailable, since this process is about to end."""
        self._lets_go = True

    async def __aenter__(self) -> Self:
        await self._wakeups.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._wakeups.__aexit__(kind, error, trace)

    async def wait(self, tenant_id: TenantId, job_id: JobId, timeout_s: float) -> JobRecord:
        """The record of the job once it is in a terminal state, whichever.

        Raises NoWorker where it never started and none served its model for `no_worker_grace_s` (which ends the job),
        WaitTimeout (which does not), Unavailable after `let_go`, NotFound, CorruptRecord, StoreUnavailable; NotReplicated where the end is not where it must.
        """
        with self._wakeups.of(tenant_id, job_id) as finished:
            return await self._wait(tenant_id, job_id, finished, self._monotonic_s() + timeout_s)

    async def _wait(
        self, tenant_id: TenantId, job_id: JobId, finished: asyncio.Event, until_s: float
    ) -> JobRecord:
        unserved_since_s: float | None = None
        while True:
            finished.clear()
            record = await self._read(tenant_id, job_id, until_s)
            if record.state.is_terminal:
                record = await self._store.settled(record)
            if record.state.is_terminal:
                return _unless_given_up(record)
            if self._lets_go:
                raise Unavailable(
                    f"this replica ends before job {job_id} is done; ask again: under the same Idempotency-Key it is the same job"
                )
            if record.state is JobState.QUEUED and record.fence == 0:
                unserved_since_s = await self._note_service(record.job.model, unserved_since_s)
                if (
                    unserved_since_s is not None
                    and self._monotonic_s() - unserved_since_s >= self._no_worker_grace_s
                ):
                    await self._store.fail_if_queued(tenant_id, job_id, NO_WORKER)
                    unserved_since_s = None
                    continue
            remaining_s = until_s - self._monotonic_s()
            if remaining_s <= 0:
                raise WaitTimeout(
                    f"job {job_id} is {record.state.value} and was not done in time; ask for less at once"
                )
            await wait_at_most(finished, min(remaining_s, self._poll_s))

    async def _read(self, tenant_id: TenantId, job_id: JobId, until_s: float) -> JobRecord:
        """The record; where Redis is away, once it is back. StoreUnavailable where that takes too long."""
        patient_until_s = min(until_s, self._monotonic_s() + self._outage_s)
        while True:
            try:
                return await self._store.get(tenant_id, job_id)
            except StoreUnavailable:
                if self._monotonic_s() + self._poll_s >= patient_until_s:
                    raise
            await asyncio.sleep(self._poll_s)

    async def _note_service(self, model: ModelId, unserved_since_s: float | None) -> float | None:
        """Since when the model has been without a worker. One that was there is taken to be there for `poll_s`."""
        now_s = self._monotonic_s()
        if now_s < self._served_until_s.get(model, 0.0):
            return None
        try:
            is_served = await self._registry.serving(model)
        except StoreUnavailable:  # nobody knows
            return None
        if is_served:
            self._served_until_s[model] = now_s + self._poll_s
            return None
        return now_s if unserved_since_s is None else unserved_since_s


def _unless_given_up(record: JobRecord) -> JobRecord:
    if record.failure is not None and record.failure.code == NO_WORKER.code:
        raise NoWorker(record.failure.message)
    return record
