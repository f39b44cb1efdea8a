"""A batch's two files: the answers of the lines that have images, and the errors of all others."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from anyio import to_thread
from redis.asyncio import Redis

from app.batches.inputs import BatchInputs, InputReader
from app.batches.keys import input_key, line_job_id, made_file_id
from app.batches.types import BatchLimits, LineAnswer, LineForms
from app.batches.validation import LineScanner
from app.domain.batch import BatchLine, BatchRecord, BatchState, LineFault, RefusedLine
from app.domain.file import FilePurpose, StoredFile, expiry_ms
from app.domain.ids import FileId
from app.domain.job import JobRecord, JobState
from app.errors import NotFound
from app.files.contents import FileContents
from app.files.keys import content_key
from app.files.store import FileStore
from app.jobs.store import JobStore
from app.objects.folder import ObjectWriter

_LINES_AT_ONCE = 100
_NOT_DONE = {
    BatchState.EXPIRED: ("batch_expired", "the batch expired before this line was done"),
    BatchState.CANCELLED: ("batch_cancelled", "the batch was cancelled before this line was done"),
    BatchState.COMPLETED: (
        "result_gone",
        "the result of this line was no longer kept when the file was written; SPARKE_JOB_TTL_S says how long it is",
    ),
}


@dataclass(frozen=True, slots=True)
class OutputStores:
    """Where answers come from and where they go. `files` must have room beyond what tenants may upload."""

    redis: Redis
    jobs: JobStore
    inputs: BatchInputs
    files: FileStore
    contents: FileContents
    forms: LineForms
    url_ttl_s: int


@dataclass(slots=True)
class MadeFile:
    """A file on its way; it has no id while it has no line."""

    filename: str
    file_id: FileId
    num_lines: int = 0
    size_bytes: int = 0
    writer: ObjectWriter | None = None


class OutputWriter:
    """Writes both files from the input and the records of the jobs. The same batch gives the same files again.

    They are seen by nobody before both are whole. What a killed process left is written over.
    """

    def __init__(
        self,
        stores: OutputStores,
        record: BatchRecord,
        limits: BatchLimits,
        *,
        refused: Mapping[int, RefusedLine],
    ) -> None:
        self._refused = refused
        self._held_up, self._next_line = record.held_up, record.cursor.line
        self._stores = stores
        self._batch = record.batch
        self._limits = limits
        self._outcome = record.outcome or BatchState.COMPLETED
        self._at_ms = record.reached_at_ms[record.state]
        batch_id = self._batch.batch_id
        make_id = partial(made_file_id, self._batch, at_ms=self._at_ms)
        self._answers = MadeFile(f"{batch_id}_output.jsonl", make_id("output"))
        self._errors = MadeFile(f"{batch_id}_error.jsonl", make_id("error"))

    async def write(self) -> dict[str, str | int]:
        """The fields that the record ends with: counts, and the ids of the files that have lines.

        Raises NotFound where the input is gone, and StoreUnavailable.
        """
        try:
            async for answers in self._describe_all():
                for made in (self._answers, self._errors):
                    chosen = [a.data for a in answers if a.is_error is (made is self._errors)]
                    await self._append(made, chosen)
            for made in (self._answers, self._errors):
                await self._finish(made)
        finally:
            for made in (self._answers, self._errors):
                if made.writer is not None:
                    made.writer.abandon()
        for made in (self._answers, self._errors):
            await self._record(made)
        ids = {"output_file_id": self._answers, "error_file_id": self._errors}
        num_completed, num_failed = self._answers.num_lines, self._errors.num_lines
        return {
            "total": num_completed + num_failed,
            "completed": num_completed,
            "failed": num_failed,
            **{name: made.file_id for name, made in ids.items() if made.num_lines},
        }

    async def _describe_all(self) -> AsyncIterator[list[LineAnswer]]:
        batch, stores = self._batch, self._stores
        reader = InputReader(
            stores.inputs,
            input_key(batch.tenant_id, batch.batch_id),
            batch.input_bytes,
            max_line_bytes=self._limits.max_line_bytes,
        )
        scanner = LineScanner(stores.forms, batch)
        while lines := await reader.take(_LINES_AT_ONCE):
            scanned = await scanner.scan([raw for raw, _ in lines])
            job_ids = [line_job_id(batch, line.number) for line in scanned]
            found = await stores.jobs.get_many(batch.tenant_id, job_ids)
            records = [None if record is None else await self._settle(record) for record in found]
            yield await to_thread.run_sync(self._describe, scanned, records)

    async def _settle(self, record: JobRecord) -> JobRecord | None:
        """A job that has not ended is cancelled: it is one of a process that was killed before it could note it."""
        if record.state.is_terminal:
            return record
        tenant_id, job_id = record.job.tenant_id, record.job.job_id
        try:
            await self._stores.jobs.cancel(tenant_id, job_id)
            return await self._stores.jobs.get(tenant_id, job_id)
        except NotFound:  # it ended just now, and was not kept for long
            return None

    def _describe(self, lines: Sequence[BatchLine], records: Sequence[JobRecord | None]) -> list[LineAnswer]:
        return [self._describe_line(line, record) for line, record in zip(lines, records, strict=True)]

    def _describe_line(self, line: BatchLine, record: JobRecord | None) -> LineAnswer:
        batch, forms = self._batch, self._stores.forms
        if record is not None and self._counts(record):
            # An image is shown by its job's record, which is kept from the job's own end on.
            expires_at_s = (record.finished_at_ms or self._at_ms) // 1000 + self._stores.url_ttl_s
            return forms.answer(batch, line, record, expires_at_s=expires_at_s)
        fault = line.fault or self._why_not_done(line.number)
        return forms.refuse(line, fault, line_job_id(batch, line.number))

    def _why_not_done(self, number: int) -> LineFault:
        """A line's own refusal, where that is what was in the way to the end; else what became of the batch, and why."""
        refused, is_expired = self._refused.get(number), self._outcome is BatchState.EXPIRED
        if refused is not None and (refused.start is None or is_expired):
            return refused.fault
        code, message = _NOT_DONE[self._outcome]
        if is_expired and self._held_up is not None and number >= self._next_line:
            message = f"{message}; at last it was held up by {self._held_up.code}: {self._held_up.message}"
        return LineFault(code, message, line=number)

    def _counts(self, record: JobRecord) -> bool:
        """Whether the job came to an end of its own, and not to that of its batch."""
        of_the_batch = {JobState.CANCELLED, JobState.EXPIRED, JobState.QUEUED, JobState.RUNNING}
        return self._outcome is BatchState.COMPLETED or record.state not in of_the_batch

    async def _append(self, made: MadeFile, lines: Sequence[bytes]) -> None:
        if not lines:
            return
        if made.writer is None:
            made.writer = self._stores.contents.writer(content_key(self._batch.tenant_id, made.file_id))
        data = b"".join(lines)
        made.num_lines += len(lines)
        made.size_bytes += len(data)
        await made.writer.write(data)

    @staticmethod
    async def _finish(made: MadeFile) -> None:
        if made.writer is not None:
            await made.writer.finish()

    async def _record(self, made: MadeFile) -> None:
        if not made.num_lines:
            return
        tenant_id = self._batch.tenant_id
        file = StoredFile(
            tenant_id=tenant_id,
            file_id=made.file_id,
            filename=made.filename,
            purpose=FilePurpose.BATCH_OUTPUT,
            size_bytes=made.size_bytes,
            created_at_ms=self._at_ms,
            expires_at_ms=expiry_ms(self._at_ms, self._batch.output_ttl_s),
        )
        with suppress(NotFound):  # a killed process may have recorded it, of other answers than are left now
            if await self._stores.files.get(tenant_id, made.file_id) != file:
                await self._stores.files.remove(tenant_id, made.file_id)
        await self._stores.files.add(file)
