"""Batches on a clock that tests move, a store of bytes in a folder, lines in a form of their own, and a worker."""

import asyncio
import json
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from patience import eventually
from redis.asyncio import Redis

from app.batches.drive import BatchDrive
from app.batches.driver import BatchDriver
from app.batches.held import HeldBatch
from app.batches.inputs import BatchInputs
from app.batches.keys import OPEN_KEY
from app.batches.output import OutputStores
from app.batches.store import BatchStore, OpenBatch
from app.batches.types import BatchLimits, LineAnswer
from app.domain.batch import Batch, BatchLine, BatchRecord, LineFault
from app.domain.file import FilePurpose, StoredFile
from app.domain.ids import LatentSpace, MemoryName, ModelId, TenantId, WorkerId, make_batch_id, make_file_id
from app.domain.quota import SameForAll
from app.domain.request import Diversity, GenerationRequest, MemorySelection
from app.domain.result import Failure, GenerationResult
from app.errors import TooManyMemories
from app.files.contents import FileContents
from app.files.keys import content_key
from app.files.store import FileStore
from app.jobs.queue import JobQueue
from app.jobs.room import CountedRoom
from app.jobs.store import JobStore
from app.jobs.types import JobLimits, ReservedJob
from app.redis.cancelling import end_task
from app.redis.members import member_of
from app.telemetry.metrics import Metrics

DAY_MS = 86_400_000
MODEL = ModelId("toy")


class WordForms:
    """A line is a word: the custom_id and the prompt. `bad…` has a fault, and `fail…` is a job that fails.

    `many…` asks for eight images, and `aside…` for one that is not remembered.
    """

    def read(self, _batch, raw):
        """The line's request."""
        if raw.data is None or raw.data.startswith(b"bad"):
            text = None if raw.data is None else raw.data.decode()
            return BatchLine(raw.number, text, fault=LineFault("bad", "a bad line", None, raw.number))
        word = raw.data.decode()
        num_images, memory = 8 if word.startswith("many") else 1, MemorySelection(write=word[:5] != "aside")
        diversity = Diversity(0.5, memory)
        request = GenerationRequest(MODEL, word, "", num_images, 64, 64, 2, 5.0, raw.number, diversity)
        return BatchLine(raw.number, word, request)

    def answer(self, _batch, line, record, *, expires_at_s):
        """What became of the job."""
        said = {
            "line": line.number,
            "id": line.custom_id,
            "state": record.state,
            "until": expires_at_s,
        }
        return LineAnswer(json.dumps(said).encode() + b"\n", record.result is None)

    def refuse(self, line, fault, job_id):
        """Why there was none."""
        said = {"line": line.number, "id": line.custom_id, "code": fault.code, "job": job_id}
        said["message"] = fault.message
        return LineAnswer(json.dumps(said).encode() + b"\n", True)


@dataclass
class Desk:
    """Everything around one Redis and one folder."""

    redis: Redis
    folder: Path
    limits: BatchLimits = field(
        default_factory=lambda: BatchLimits(
            max_lines_waiting=4, poll_s=0.01, lease_s=600.0, max_line_bytes=1000, retry_s=0.02
        )
    )
    job_limits: JobLimits = field(default_factory=JobLimits)
    now_ms: int = 1_000_000
    quotas: dict[str, int] = field(default_factory=dict)
    """Of the tenants, by the names of `Quotas`."""
    num_entries: int = 0
    """In memories, and bytes that are stored."""
    has_memory_left: bool = True
    num_made: int = 0
    failure: Failure = field(default_factory=lambda: Failure("broken", "as asked"))
    done: list[str] = field(default_factory=list)
    """The prompts whose jobs a worker has ended, in order."""

    def __post_init__(self):
        self.contents = FileContents.open(self.folder.as_uri())
        self.inputs = BatchInputs.open(self.folder.as_uri())
        self.metrics = Metrics()

    def clock_ms(self) -> int:
        """The time that tests set."""
        return self.now_ms

    def batches(self, redis: Redis | None = None) -> BatchStore:
        """The API's side."""
        most = self.limits.max_open_per_tenant
        return BatchStore(redis or self.redis, max_open_per_tenant=most, clock_ms=self.clock_ms)

    def jobs(self, redis: Redis | None = None) -> JobStore:
        """Where lines go."""
        quotas = SameForAll(replace(self.job_limits.quotas, **self.quotas))
        room = CountedRoom(
            memory_entries=self._count, stored_bytes=self._count, check_memory=self._check_memory
        )
        return JobStore(
            redis or self.redis, self.job_limits, clock_ms=self.clock_ms, quotas=quotas, room=room
        )

    async def _count(self, _tenant_id):
        return self.num_entries

    async def _check_memory(self, _job):
        if not self.has_memory_left:
            raise TooManyMemories("none left")

    def files(self, redis: Redis | None = None) -> FileStore:
        """Where files are recorded."""
        return FileStore(redis or self.redis, max_files=100, clock_ms=self.clock_ms)

    def stores(self, redis: Redis | None = None) -> OutputStores:
        """What a drive works with."""
        return OutputStores(
            redis=redis or self.redis,
            jobs=self.jobs(redis),
            inputs=self.inputs,
            files=self.files(redis),
            contents=self.contents,
            forms=WordForms(),
            url_ttl_s=60,
        )

    def driver(self, redis: Redis | None = None) -> BatchDriver:
        """What one API process does."""
        return BatchDriver(
            self.batches(redis), self.stores(redis), self.limits, self.metrics, clock_ms=self.clock_ms
        )

    def held(self, batch: Batch | OpenBatch, redis: Redis | None = None) -> HeldBatch:
        """A batch that may be acquired."""
        return HeldBatch(redis or self.redis, batch.tenant_id, batch.batch_id, clock_ms=self.clock_ms)

    def drive(self, held: HeldBatch, redis: Redis | None = None) -> BatchDrive:
        """A drive of a batch that is held."""
        return BatchDrive(held, self.stores(redis), self.limits, self.metrics)

    async def batch(self, *words: str, tenant: str = "acme", content: bytes | None = None) -> Batch:
        """A new batch of a new file, not created yet. Time moves on by a millisecond."""
        self.num_made += 1
        self.now_ms += 1
        tenant_id, number = TenantId(tenant), self.num_made.to_bytes(12, "big")
        file_id = make_file_id(self.now_ms, number)
        data = "\n".join(words).encode() if content is None else content
        await self.contents.put(content_key(tenant_id, file_id), data)
        await self.files().add(
            StoredFile(
                tenant_id,
                file_id,
                "lines.jsonl",
                FilePurpose.BATCH,
                len(data),
                self.now_ms,
                self.now_ms + 30 * DAY_MS,
            )
        )
        return Batch(
            tenant_id=tenant_id,
            batch_id=make_batch_id(self.now_ms, number),
            input_file_id=file_id,
            input_bytes=len(data),
            base_url="http://here",
            created_at_ms=self.now_ms,
            expires_at_ms=self.now_ms + DAY_MS,
            output_ttl_s=86_400,
        )

    async def create(self, *words: str, tenant: str = "acme") -> Batch:
        """A new batch that is there."""
        batch = await self.batch(*words, tenant=tenant)
        await self.batches().create(batch)
        return batch

    async def read(self, batch: Batch) -> BatchRecord:
        """How a batch stands."""
        return await self.batches().get(batch.tenant_id, batch.batch_id)

    async def lines(self, batch: Batch, file_id: str | None) -> list[dict]:
        """The lines of a file that the batch made."""
        assert file_id is not None
        file = await self.files().get(batch.tenant_id, file_id)
        assert file.purpose is FilePurpose.BATCH_OUTPUT
        data = await self.contents.get(content_key(batch.tenant_id, file_id))
        assert len(data) == file.size_bytes
        return [json.loads(line) for line in data.splitlines()]

    async def output(self, batch: Batch) -> list[dict]:
        """Lines of the output file."""
        return await self.lines(batch, (await self.read(batch)).output_file_id)

    async def errors(self, batch: Batch) -> list[dict]:
        """Lines of the error file."""
        return await self.lines(batch, (await self.read(batch)).error_file_id)

    async def wait(self, batch: Batch) -> BatchRecord:
        """The record once the batch has ended and is forgotten among the open ones."""
        member = member_of(batch.tenant_id, batch.batch_id)

        async def has_ended():
            return await self.redis.zscore(OPEN_KEY, member) is None

        await eventually(has_ended)
        return await self.read(batch)

    @asynccontextmanager
    async def driving(self, driver: BatchDriver):
        """A driver that runs for as long as the context lasts."""
        task = asyncio.create_task(driver.run())
        try:
            yield driver
        finally:
            await end_task(task)
            await driver.close()

    @asynccontextmanager
    async def working(self):
        """A worker that ends every job it gets, `fail…` as a failure, in an order of its own."""
        task = asyncio.create_task(self._work())
        try:
            yield
        finally:
            await end_task(task)
            assert task.cancelled(), task.exception()

    async def work_once(self, queue: JobQueue) -> int:
        """Ends the jobs that can be had now; how many that were."""
        reserved = await queue.reserve([MODEL], WorkerId("w"), 8, block_ms=0)
        random.Random(len(self.done)).shuffle(reserved)
        for held in reserved:
            await self.finish(queue, held)
        return len(reserved)

    async def finish(self, queue: JobQueue, held: ReservedJob) -> None:
        """Ends a job as its prompt says."""
        if held.job.request.prompt.startswith("fail"):
            await queue.fail(held, self.failure)
        else:
            result = GenerationResult((), LatentSpace("toy"), MemoryName("default"), 0)
            await queue.commit(held, result, [])
        self.done.append(held.job.request.prompt)

    async def _work(self):
        queue = JobQueue(self.redis, self.job_limits, clock_ms=self.clock_ms)
        while True:
            if not await self.work_once(queue):
                await asyncio.sleep(0.005)


@pytest.fixture
def desk(redis: Redis, tmp_path: Path) -> Desk:
    """A desk on an empty Redis and an empty folder."""
    return Desk(redis, tmp_path)


@pytest.fixture
def make_desk() -> type[Desk]:
    """A desk on a Redis that the test brings."""
    return Desk
