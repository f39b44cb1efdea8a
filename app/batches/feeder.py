"""From lines to jobs: the next ones, and those that were refused before."""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from app.batches.held import HeldBatch, LeaseLost
from app.batches.inputs import InputReader
from app.batches.keys import line_job_id
from app.batches.output import OutputStores
from app.batches.refusals import REFUSED, SHARE_USED, Reach, Refusal, judge
from app.batches.types import BatchLimits
from app.batches.validation import LineScanner
from app.domain.batch import (
    MAX_FAULTS_SHOWN,
    BatchLine,
    BatchRecord,
    BatchState,
    Cursor,
    LineFault,
    RefusedLine,
)
from app.domain.ids import MemoryName, ModelId
from app.domain.job import Job, JobKind, Lane
from app.domain.request import GenerationRequest
from app.errors import NotFound
from app.telemetry.metrics import Metrics

_LINES_AT_ONCE = 500
_TELL_AGAIN_S = 30.0  # what is told of a refusal has times in it

MakeReader = Callable[[Cursor], InputReader]


class LineFeeder:
    """Makes jobs of the next lines of a batch, so many that a bounded number of them waits for a worker.

    What workers have does not count: so a batch has lines for all of them, however many there are. A bounded number of
    lines that are refused for what concerns only them is stepped over and tried again from time to time; any other refusal
    holds up what follows. Why is told by the batch.
    """

    def __init__(
        self,
        held: HeldBatch,
        stores: OutputStores,
        record: BatchRecord,
        limits: BatchLimits,
        *,
        metrics: Metrics,
    ) -> None:
        self._held = held
        self._stores = stores
        self._batch = record.batch
        self._limits = limits
        self._metrics = metrics
        self._cursor = record.cursor
        self._scanner = LineScanner(stores.forms, record.batch)
        self._next: list[tuple[BatchLine, Cursor]] = []
        self._bad: frozenset[int] = frozenset()
        self._reader: InputReader | None = None
        self._is_read = False
        self._held_back: dict[int, tuple[BatchLine, LineFault]] = {}
        self._try_again_at_s = 0.0
        self._num_waiting: dict[ModelId, int] = {}
        self._faults = record.faults
        self._told = _summary(record.held_up, record.faults)
        self._tell_again_at_s = 0.0
        self.in_flight: set[int] = set()
        self.running: set[int] = set()

    @property
    def is_done(self) -> bool:
        """True once every line has become a job, or never will."""
        return self._is_read and not self._held_back

    async def open(self, make_reader: MakeReader) -> None:
        """Takes the lines from where the record says, and those again that were stepped over."""
        self._bad = await self._held.read_bad_lines()
        self.in_flight = await self._held.lines_in_flight()
        self._reader = make_reader(self._cursor)
        refused = await self._held.read_refused()
        places = {number: one.start for number, one in refused.items() if one.start is not None}
        if places:
            for line in await self._read_again(make_reader(places[min(places)]), set(places)):
                self._held_back[line.number] = (line, refused[line.number].fault)

    async def _read_again(self, reader: InputReader, numbers: set[int]) -> list[BatchLine]:
        """Those of the lines that have a request still; of the others the output says what is wrong with them."""
        scanner, found = LineScanner(self._stores.forms, self._batch), list[BatchLine]()
        while reader.next_number <= max(numbers) and (taken := await reader.take(_LINES_AT_ONCE)):
            found += await scanner.scan([raw for raw, _ in taken if raw.number in numbers])
        return [line for line in found if line.request is not None]

    async def feed(self) -> int:
        """The number of lines that went by; 0 where there is no room, in the queue or among the batch's own jobs."""
        if self._reader is None:
            raise ValueError("expected a feeder with a reader; call open first")
        self._num_waiting.clear()
        num_taken_up = await self._take_up()
        room = self._room
        if room <= 0:
            return num_taken_up
        if not self._next and not self._is_read:
            taken = await self._reader.take(room)
            lines = await self._scanner.scan([raw for raw, _ in taken])
            self._next = list(zip(lines, (cursor for _, cursor in taken), strict=True))
            self._is_read = not taken
        return num_taken_up + await self._submit(room)

    @property
    def _room(self) -> int:
        return self._limits.max_lines_waiting - len(self.in_flight - self.running)

    async def _submit(self, room: int) -> int:
        accepted: list[int] = []
        refused: dict[int, RefusedLine] = {}
        num_failed, num_done = 0, 0
        before, stop = self._cursor, None
        for line, after in self._next[:room]:
            is_good = line.number not in self._bad
            if is_good and line.request is None:  # it was good once: the catalogue has changed
                num_failed += 1
            elif is_good and line.request is not None:
                refusal = await self._accept(line, line.request)
                if refusal is None:
                    accepted.append(line.number)
                elif refusal.fault is None or not self._steps_over(refusal, line):
                    stop = refusal
                    break
                else:
                    is_over = refusal.reach is Reach.NEVER
                    refused[line.number] = RefusedLine(refusal.fault, None if is_over else before)
                    num_failed += is_over
            num_done += 1
            before = after
        if num_done:
            await self._note(before, accepted, refused, num_failed=num_failed)
            del self._next[:num_done]
        await self._tell(stop.fault if stop else None)
        return num_done

    def _steps_over(self, refusal: Refusal, line: BatchLine) -> bool:
        """Whether the lines behind one that was refused go on; it is kept in hand then, where it is to be tried again."""
        if refusal.fault is None or refusal.reach is Reach.ALL:
            return False
        if refusal.reach is Reach.NEVER:
            self._faults = (*self._faults, refusal.fault)[:MAX_FAULTS_SHOWN]
            return True
        if len(self._held_back) >= self._limits.max_held_back:
            return False
        self._held_back[line.number] = (line, refusal.fault)
        return True

    async def _take_up(self) -> int:
        """Tries again what was stepped over, but of what needs the same room only the first; how many became jobs."""
        now_s = time.monotonic()
        if not self._held_back or now_s < self._try_again_at_s:
            return 0
        self._try_again_at_s = now_s + self._limits.retry_s
        accepted: list[int] = []
        least: dict[tuple[str, MemoryName], int] = {}
        room = self._room
        for number, (line, fault) in self._held_back.items():
            request = line.request
            if request is None or len(accepted) >= room:
                continue
            needs = (fault.code, request.diversity.memory.name)
            if request.num_images >= least.get(needs, request.num_images + 1):
                continue
            refusal = await self._accept(line, request)
            if refusal is None:
                accepted.append(number)
            elif refusal.reach is Reach.ALL:
                break
            else:
                least[needs] = request.num_images
        if accepted and await self._unless_over(self._held.take_up(accepted), accepted):
            self.in_flight |= set(accepted)
            for number in accepted:
                del self._held_back[number]
        return len(accepted)

    async def _accept(self, line: BatchLine, request: GenerationRequest) -> Refusal | None:
        """Makes the line a job; once more it changes nothing. None where it is one, else why it is not.

        The batch's share of the queue is used up where it is half full of the tenant's jobs.
        """
        batch, model, num_waiting = self._batch, request.model, self._num_waiting
        if model not in num_waiting:
            num_waiting[model] = await self._stores.jobs.count_waiting(batch.tenant_id, model)
        if num_waiting[model] >= self._limits.max_waiting:
            return SHARE_USED
        job = Job(
            tenant_id=batch.tenant_id,
            job_id=line_job_id(batch, line.number),
            kind=JobKind.GENERATE,
            request=request,
            created_at_ms=self._held.clock_ms(),
            deadline_at_ms=batch.expires_at_ms,
            lane=Lane.BATCH,
        )
        try:
            num_waiting[model] = (await self._stores.jobs.accept(job)).num_waiting
        except REFUSED as error:
            return judge(error, line, request)
        self._metrics.jobs_accepted.labels(model).inc()
        return None

    async def _note(
        self, after: Cursor, accepted: list[int], refused: Mapping[int, RefusedLine], *, num_failed: int
    ) -> None:
        """Notes which lines are jobs and which were refused, and moves the cursor past them."""
        noting = self._held.advance(self._cursor, after, accepted, refused, num_failed=num_failed)
        if await self._unless_over(noting, accepted):
            self._cursor = after
            self.in_flight |= set(accepted)

    async def _unless_over(self, noting: Awaitable[bool], accepted: list[int]) -> bool:
        """Notes what was accepted. Of a batch that was cancelled meanwhile, the writer of outputs cancels it again.

        Where another process has brought that to its end already, it is to be done here.
        """
        try:
            return await noting
        except LeaseLost:
            if not await self._held.is_in(BatchState.IN_PROGRESS):
                await self._take_back(accepted)
            raise

    async def _take_back(self, lines: Iterable[int]) -> None:
        for line in lines:
            with suppress(NotFound):
                await self._stores.jobs.cancel(self._batch.tenant_id, line_job_id(self._batch, line))

    async def _tell(self, stop: LineFault | None) -> None:
        """Has the batch say what holds up its lines, the first of those that were stepped over where nothing else does."""
        held_up = stop or next((fault for _, fault in self._held_back.values()), None)
        told, now_s = _summary(held_up, self._faults), time.monotonic()
        if told == self._told and (held_up is None or now_s < self._tell_again_at_s):
            return
        await self._held.tell(held_up, self._faults)
        self._told, self._tell_again_at_s = told, now_s + _TELL_AGAIN_S


def _summary(held_up: LineFault | None, faults: Sequence[LineFault]) -> tuple[str | None, int | None, int]:
    """What is to be told anew where it changes."""
    return (None, None, len(faults)) if held_up is None else (held_up.code, held_up.line, len(faults))
