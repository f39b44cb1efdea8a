"""The course of a job, whatever it is for: begun where it is still wanted, and ended once, with a result or without one."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

from app.domain.job import JobState
from app.jobs.transitions import EXPIRED
from app.jobs.types import Committed, ReservedJob, Standing
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import Attribute, span
from app.worker.course.committing import Commits, Committer, Finished
from app.worker.course.ending import Fails, JobEnder
from app.worker.patience import Patience

T = TypeVar("T")


class NotWanted(Exception):
    """The job was cancelled, or is another worker's by now."""

    def __init__(self, standing: Standing) -> None:
        super().__init__(standing)
        self.standing = standing


class TooLate(Exception):
    """Its deadline is over."""


class Begins(Commits, Fails, Protocol):
    """Where jobs begin and end."""

    async def begin(self, reserved: ReservedJob) -> Standing:
        """Say that the job is about to run."""
        ...

    async def standing(self, reserved: ReservedJob) -> Standing:
        """How the job stands while it runs."""
        ...


class JobCourse:
    """What a runner does for one job goes through `carry_out`: any error, NotWanted and TooLate among them, ends the job.

    Within it come `begin`, the work, and `commit`; `check_time` and `check_wanted` wherever going on would be for nobody.
    """

    def __init__(
        self, jobs: Begins, patience: Patience, metrics: Metrics, clock_ms: Callable[[], int]
    ) -> None:
        self._jobs = jobs
        self._patience = patience
        self._metrics = metrics
        self._committer = Committer(jobs, patience, metrics)
        self.ender = JobEnder(jobs, patience, metrics, clock_ms)

    async def carry_out(
        self, reserved: ReservedJob, event: str, work: Callable[[], Awaitable[T]]
    ) -> T | None:
        """What the work gives. None where it raised, with which the job has ended; the log gets that as `event`."""
        with self.ender.spans.within(reserved):
            try:
                return await work()
            except NotWanted as found:
                await self.ender.let_go(reserved, found.standing)
            except TooLate:
                await self.ender.fail(reserved, EXPIRED)
            except Exception as error:  # noqa: BLE001 - whatever it is, the job ends with it and the others go on
                await self.ender.fail_for(reserved, error, event)
            return None

    async def begin(self, reserved: ReservedJob) -> None:
        """Says that the job is about to run. Raises TooLate, NotWanted and StoreUnavailable."""
        self.check_time(reserved)
        _check(await self.patiently(reserved, lambda: self._jobs.begin(reserved)))

    async def check_wanted(self, reserved: ReservedJob) -> None:
        """Raises TooLate, NotWanted and StoreUnavailable."""
        _check(await self._jobs.standing(reserved))
        self.check_time(reserved)

    def check_time(self, reserved: ReservedJob) -> None:
        """Raises TooLate."""
        if self.ender.is_late(reserved):
            raise TooLate

    async def patiently(self, reserved: ReservedJob, operation: Callable[[], Awaitable[T]]) -> T:
        """What the operation gives, repeated until Redis answers, the job's deadline is over or the worker stops."""
        return await self._patience.call(operation, until_ms=reserved.job.deadline_at_ms)

    async def commit(
        self,
        reserved: ReservedJob,
        finished: Finished,
        told: Mapping[str, Attribute] | None = None,
    ) -> bool:
        """Ends the job with its result, counts and tells that; False where it had ended as cancelled, or is another's.

        Repeated until Redis answers or the worker stops. Raises StoreUnavailable and CorruptRecord.
        """
        num_entries = len(finished.entries)
        with span("commit", {"num_entries": num_entries}):
            committed = await self._committer.commit(reserved, finished)
        if not isinstance(committed, Committed):
            self.ender.count(reserved, JobState.CANCELLED if committed else None)
            return False
        self.ender.count(reserved, JobState.SUCCEEDED, **(told or {}))
        if num_entries and committed.memory_version is not None:
            self._metrics.memory_entries_appended.labels(reserved.job.model).inc(num_entries)
        return True


def _check(standing: Standing) -> None:
    if standing is not Standing.OURS:
        raise NotWanted(standing)
