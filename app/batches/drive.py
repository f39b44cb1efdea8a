"""One batch from where it stands to its end, or until its turn is over."""

import time
from asyncio import sleep
from collections.abc import Callable, Iterable
from contextlib import suppress

import structlog

from app.batches import codec
from app.batches.feeder import LineFeeder
from app.batches.held import Fields, HeldBatch, LeaseLost
from app.batches.inputs import InputReader
from app.batches.keys import input_key, line_job_id
from app.batches.output import OutputStores, OutputWriter
from app.batches.types import BatchLimits
from app.batches.validation import LineScanner, survey_input
from app.domain.batch import Batch, BatchRecord, BatchState, Cursor, LineFault
from app.domain.job import JobState
from app.errors import NotFound
from app.files.keys import content_key
from app.telemetry.metrics import Metrics

_GONE = LineFault(
    "input_gone", "the input file was deleted or has expired before it was read", "input_file_id"
)

_log = structlog.get_logger(__name__)


class BatchDrive:
    """Takes a held batch from state to state. What it does again after a kill changes nothing.

    Raises LeaseLost where another process has the batch, and StoreUnavailable, after which `run` may be called again.
    """

    def __init__(
        self,
        held: HeldBatch,
        stores: OutputStores,
        limits: BatchLimits,
        metrics: Metrics,
        *,
        is_crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        self._held = held
        self._stores = stores
        self._limits = limits
        self._metrics = metrics
        self._is_crowded = is_crowded
        self._input_key = input_key(held.tenant_id, held.batch_id)
        self._is_counted = False

    async def run(self) -> bool:
        """True once the batch has ended and nothing of it is left to do; False where others wait for its turn."""
        until_s = time.monotonic() + self._limits.slice_s
        while True:
            record = await self._held.read()
            if record.state.is_ended:
                await self._count_end(record.state)
                await self._stores.inputs.delete(self._input_key)
                return True
            if time.monotonic() >= until_s and self._is_crowded():
                return False
            try:
                await self._step(record)
            except LeaseLost:
                if (await self._held.read()).state.is_ended:  # it may have been copied again just now
                    await self._stores.inputs.delete(self._input_key)
                raise

    async def _step(self, record: BatchRecord) -> None:
        """Brings the batch out of its state, or some way."""
        steps = {
            BatchState.VALIDATING: self._validate,
            BatchState.IN_PROGRESS: self._work,
            BatchState.CANCELLING: self._cancel,
            BatchState.FINALIZING: self._finalize,
        }
        try:
            await steps[record.state](record)
        except NotFound:
            await self._give_up(record)

    async def _validate(self, record: BatchRecord) -> None:
        batch = record.batch
        await self._bring_input(batch)
        scanner = LineScanner(self._stores.forms, batch)
        survey = await survey_input(self._reader(batch), scanner, self._limits.max_lines)
        if survey.failure is not None:
            await self._fail(BatchState.VALIDATING, survey.failure, *survey.faults)
            return
        await self._held.write_bad_lines(survey.bad_lines)
        fields: Fields = {
            "total": survey.num_lines,
            "failed": len(survey.bad_lines),
            "faults": codec.encode_faults(tuple(survey.faults)),
            "next_line": 1,
        }
        await self._held.move(BatchState.VALIDATING, BatchState.IN_PROGRESS, fields)

    async def _bring_input(self, batch: Batch) -> None:
        """Gives the batch a copy of its own, which stays when the file is deleted or expires. Raises NotFound."""
        if not await self._stores.inputs.has(self._input_key):
            source = content_key(batch.tenant_id, batch.input_file_id)
            await self._stores.inputs.copy(source, self._input_key)

    async def _fail(self, before: BatchState, *faults: LineFault) -> None:
        await self._end(before, BatchState.FAILED, {"faults": codec.encode_faults(faults)})

    async def _give_up(self, record: BatchRecord) -> None:
        """Ends a batch whose input is gone: before it was copied, or by a fault of the object store."""
        await self._stop(record.batch, await self._held.lines_in_flight())
        await self._fail(record.state, _GONE)

    async def _work(self, record: BatchRecord) -> None:
        """Keeps some lines as jobs, until all have ended, the time is up, or a cancel came."""
        feeder = LineFeeder(self._held, self._stores, record, self._limits, metrics=self._metrics)
        await feeder.open(lambda start: self._reader(record.batch, start))
        until_s = time.monotonic() + self._limits.slice_s
        while await self._held.is_in(BatchState.IN_PROGRESS):
            is_late = self._held.clock_ms() >= record.batch.expires_at_ms
            if is_late:
                await self._stop(record.batch, feeder.in_flight)
            num_ended = await self._collect(record.batch, feeder.in_flight, feeder.running)
            if is_late or (feeder.is_done and not feeder.in_flight):
                outcome = BatchState.EXPIRED if is_late else BatchState.COMPLETED
                fields = {"outcome": outcome.value}
                await self._held.move(BatchState.IN_PROGRESS, BatchState.FINALIZING, fields)
                return
            num_fed = await feeder.feed()
            if time.monotonic() >= until_s and self._is_crowded():
                return
            if not num_ended and not num_fed:
                await sleep(self._limits.poll_s)

    async def _cancel(self, record: BatchRecord) -> None:
        in_flight = await self._held.lines_in_flight()
        await self._stop(record.batch, in_flight)
        await self._collect(record.batch, in_flight, are_over=True)
        made: Fields = {} if record.counts is None else await self._write(record)
        await self._end(BatchState.CANCELLING, BatchState.CANCELLED, made)

    async def _finalize(self, record: BatchRecord) -> None:
        made = await self._write(record)
        await self._end(BatchState.FINALIZING, record.outcome or BatchState.COMPLETED, made)

    async def _write(self, record: BatchRecord) -> dict[str, str | int]:
        refused = await self._held.read_refused()
        return await OutputWriter(self._stores, record, self._limits, refused=refused).write()

    async def _end(self, before: BatchState, after: BatchState, fields: Fields) -> None:
        await self._held.end(before, after, self._limits.ttl_s, fields)

    async def _count_end(self, state: BatchState) -> None:
        """Counts and logs an end that this drive brought about, once: also one whose answer was lost, and no other."""
        if not self._is_counted and await self._held.was_ended_here():
            self._is_counted = True
            self._metrics.batches_ended.labels(state.value).inc()
            _log.info("batch_ended", batch_id=self._held.batch_id, state=state.value)

    async def _collect(
        self, batch: Batch, in_flight: set[int], running: set[int] | None = None, *, are_over: bool = False
    ) -> int:
        """Counts the lines whose jobs have ended, all of them where they `are_over`. How many that were.

        Ended ones leave `in_flight`; `running` is brought up to date, where it is given.
        """
        if not in_flight:
            return 0
        lines = sorted(in_flight)
        job_ids = [line_job_id(batch, line) for line in lines]
        states = await self._stores.jobs.states(batch.tenant_id, job_ids)
        ended = {
            line: BatchState.COMPLETED if state is JobState.SUCCEEDED else BatchState.FAILED
            for line, state in zip(lines, states, strict=True)
            if state is None or state.is_terminal or are_over
        }
        if ended:
            completed, failed = await self._held.count(ended)
            self._metrics.batch_lines.labels("completed").inc(completed)
            self._metrics.batch_lines.labels("failed").inc(failed)
            in_flight.difference_update(ended)
        if running is not None:
            running.clear()
            running.update(
                line for line, state in zip(lines, states, strict=True) if state is JobState.RUNNING
            )
        return len(ended)

    async def _stop(self, batch: Batch, in_flight: Iterable[int]) -> None:
        """Cancels the jobs of lines. None of them can succeed after that, though a worker may still run one."""
        for line in in_flight:
            with suppress(NotFound):
                await self._stores.jobs.cancel(batch.tenant_id, line_job_id(batch, line))

    def _reader(self, batch: Batch, start: Cursor | None = None) -> InputReader:
        size_bytes, most = batch.input_bytes, self._limits.max_line_bytes
        return InputReader(self._stores.inputs, self._input_key, size_bytes, max_line_bytes=most, start=start)
