"""Jobs, results and entries to put through the queue, on a clock that tests move."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from redis.asyncio import Redis

from app.domain.ids import JobId, LatentSpace, MemoryName, ModelId, TenantId, WorkerId, image_id, make_job_id
from app.domain.job import Job, JobKind, Lane
from app.domain.request import Diversity, GenerationRequest
from app.domain.result import GeneratedImage, GenerationResult
from app.images.store import image_key
from app.jobs.arrivals import Turn
from app.jobs.leases import JobReclaimer
from app.jobs.place import JobPlace
from app.jobs.queue import JobQueue
from app.jobs.store import JobStore
from app.jobs.sweeper import JobSweeper
from app.jobs.transitions import Transitions
from app.jobs.types import JobLimits, ReservedJob, WorkerInfo
from app.jobs.workers import WorkerRegistry
from app.memory.codec import MemoryEntry, encode_entry
from app.memory.keys import MemoryKey
from app.memory.store import MemoryStore

MODEL = ModelId("toy")
SPACE = LatentSpace("toy")
MEMORY = MemoryName("default")


@dataclass
class Bench:
    """Everything around one Redis, and makers of what goes through it."""

    redis: Redis
    limits: JobLimits = field(default_factory=JobLimits)
    now_ms: int = 1_000_000
    num_jobs: int = 0

    def clock_ms(self) -> int:
        """The time that tests set."""
        return self.now_ms

    def store(self, redis: Redis | None = None) -> JobStore:
        """The API's side."""
        return JobStore(redis or self.redis, self.limits, clock_ms=self.clock_ms)

    def queue(self, redis: Redis | None = None, *, poll_s: float = 1.0) -> JobQueue:
        """A worker's side."""
        return JobQueue(redis or self.redis, self.limits, clock_ms=self.clock_ms, poll_s=poll_s)

    def registry(self, ttl_s: float = 60.0) -> WorkerRegistry:
        """The live workers."""
        return WorkerRegistry(self.redis, ttl_s=ttl_s, clock_ms=self.clock_ms)

    def sweeper(self, redis: Redis | None = None) -> JobSweeper:
        """A sweeper that is never refused for having swept a moment ago."""
        return JobSweeper(
            redis or self.redis, self.limits, self.registry(), interval_s=0, clock_ms=self.clock_ms
        )

    def reclaimer(
        self,
        redis: Redis | None = None,
        *,
        lease_s: float = 0.0,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> JobReclaimer:
        """Takes back what workers hold; with a lease of 0 s every worker is late."""
        return JobReclaimer(
            redis or self.redis,
            self.limits,
            lease_s=lease_s,
            clock_ms=self.clock_ms,
            monotonic_s=monotonic_s,
        )

    def memories(self) -> MemoryStore:
        """The memories' reader."""
        return MemoryStore(self.redis)

    @staticmethod
    def memory(tenant: str = "acme") -> MemoryKey:
        """The memory that all results here name."""
        return MemoryKey(TenantId(tenant), SPACE, MEMORY)

    async def release(self, tenant: str = "acme") -> None:
        """Puts a tenant's next job into the stream, as a worker does that then dies."""
        arrivals = Transitions(self.redis, self.limits, self.clock_ms).arrivals
        released = await arrivals.release(MODEL, Turn(TenantId(tenant), Lane.INTERACTIVE))
        await arrivals.enter(JobPlace(TenantId(tenant), released.job_id, MODEL))

    async def live(self, name: str, *models: ModelId) -> WorkerId:
        """A worker that lives."""
        worker_id = WorkerId(name)
        await self.registry().beat(WorkerInfo(worker_id, "ready", models or (MODEL,), self.now_ms))
        return worker_id

    def job(
        self, tenant: str = "acme", *, num_images: int = 1, model: ModelId = MODEL, timeout_ms: int = 10**9
    ) -> Job:
        """A new job. Time moves on by a millisecond, so jobs have an order."""
        self.num_jobs += 1
        self.now_ms += 1
        request = GenerationRequest(
            model=model,
            prompt=f"prompt {self.num_jobs}",
            negative_prompt="",
            num_images=num_images,
            width_px=64,
            height_px=64,
            steps=2,
            guidance_scale=5.0,
            seed=self.num_jobs,
            diversity=Diversity(strength=0.5),
        )
        job_id = make_job_id(self.now_ms, self.num_jobs.to_bytes(8, "big"))
        return Job(TenantId(tenant), job_id, JobKind.GENERATE, request, self.now_ms, self.now_ms + timeout_ms)

    @staticmethod
    def result(reserved: ReservedJob) -> GenerationResult:
        """What a worker would have made of a job."""
        job = reserved.job
        images = tuple(
            GeneratedImage(
                image_id=image_id(job.job_id, index),
                seed=seed,
                storage_key=image_key(job.tenant_id, job.job_id, reserved.fence, index),
                size_bytes=10,
                num_neighbours=0,
                nearest_similarity=None,
                push=0.0,
            )
            for index, seed in enumerate(job.request.seeds)
        )
        return GenerationResult(images, SPACE, MEMORY, 0)

    def entries(self, reserved: ReservedJob) -> list[bytes]:
        """One memory entry for each image of a job."""
        return [
            encode_entry(
                MemoryEntry(
                    image_id(reserved.job.job_id, index),
                    seed,
                    self.now_ms,
                    np.full(4, 0.5, np.float16),
                    _direction(reserved.job.job_id),
                )
            )
            for index, seed in enumerate(reserved.job.request.seeds)
        ]


def _direction(job_id: JobId) -> np.ndarray:
    numbers = np.frombuffer(hashlib.sha256(job_id.encode()).digest()[:6], np.uint8).astype(np.float16)
    return numbers / np.float16(255)


@pytest.fixture
def bench(redis: Redis) -> Bench:
    """A bench on an empty Redis."""
    return Bench(redis)


@pytest.fixture
def make_bench() -> type[Bench]:
    """A bench on a Redis that the test brings."""
    return Bench
