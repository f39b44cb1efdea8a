"""Jobs to hand to the worker's parts, and workers without a loop, on a real Redis."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from patience import PATIENCE_S
from prometheus_client import CollectorRegistry

from app.domain.ids import LatentSpace, LoraName, MemoryName, ModelId, TenantId, WorkerId, make_job_id
from app.domain.job import Job, JobKind, JobRecord
from app.domain.lora import LoraSelection
from app.domain.model import ModelSpec, SizeLimits
from app.domain.request import Diversity, Edit, GenerationRequest, MemorySelection, ReferenceSelection
from app.images.store import ImageStore
from app.jobs.queue import JobQueue
from app.jobs.store import JobStore
from app.jobs.types import JobLimits, ReservedJob
from app.jobs.workers import now_ms
from app.memory.keys import MemoryKey
from app.memory.store import MemoryStore
from app.telemetry.metrics import Metrics
from app.worker.course.diversity import DiversityMeter
from app.worker.course.parts import RunnerParts
from app.worker.course.runner import BatchRunner
from app.worker.loops.batch_caps import BatchCaps
from app.worker.loops.cap_keeper import CapKeeper
from app.worker.memory.memory_cache import MemoryCache
from app.worker.model.device import DeviceThread
from app.worker.model.engine_metrics import EngineMetrics
from app.worker.model.models import LoadedModel
from app.worker.patience import Patience
from sparke_engine.diffusion.toy import ToyEngine
from sparke_engine.guidance.presets import preset_named

MakeJob = Callable[..., Job]


@dataclass(frozen=True)
class Held:
    """The least that a batcher needs."""

    job: Job

    @property
    def runs_alone(self) -> bool:
        """As the queue's."""
        return self.job.request.reproducible


def _make_job(
    number: int,
    *,
    tenant: str = "acme",
    prompt: str = "a red circle",
    negative_prompt: str = "",
    num_images: int = 1,
    size_px: int = 64,
    steps: int = 2,
    guidance_scale: float = 5.0,
    seed: int = 7,
    strength: float = 0.5,
    memory: MemorySelection | None = None,
    num_neighbours: int | None = None,
    novelty: ReferenceSelection | None = None,
    context: ReferenceSelection | None = None,
    reproducible: bool = False,
    loras: dict[str, float] | None = None,
    edit: Edit | None = None,
    model: str = "toy",
    created_at_ms: int = 1_000,
    deadline_at_ms: int = 2**45,
) -> Job:
    memory = memory or MemorySelection(name=MemoryName("default"))
    request = GenerationRequest(
        model=ModelId(model),
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_images=num_images,
        width_px=size_px,
        height_px=size_px,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        diversity=Diversity(
            strength=strength, memory=memory, num_neighbours=num_neighbours, novelty=novelty, context=context
        ),
        reproducible=reproducible,
        loras=tuple(LoraSelection(LoraName(name), scale) for name, scale in (loras or {}).items()),
        edit=edit,
    )
    job_id = make_job_id(created_at_ms, number.to_bytes(8, "big"))
    kind = JobKind.GENERATE if edit is None else JobKind.EDIT
    return Job(TenantId(tenant), job_id, kind, request, created_at_ms, deadline_at_ms)


class SmallEngine(ToyEngine):
    """The toy on a device that has room for so many images, and whose memory says so when it is full."""

    def __init__(self, *, room_images: int) -> None:
        super().__init__(preset_named("toy"))
        self.room_images = room_images
        self.sizes: list[int] = []

    def generate(self, groups, plan, on_step):
        """As the toy, if there is room."""
        size = sum(len(group.seeds) for group in groups)
        self.sizes.append(size)
        if size > self.room_images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().generate(groups, plan, on_step)


@pytest.fixture(scope="session")
def small_engine() -> type[SmallEngine]:
    """Makes engines with little room."""
    return SmallEngine


@pytest.fixture(scope="session")
def make_job() -> MakeJob:
    """A function that makes a valid job; its first argument tells jobs apart."""
    return _make_job


@pytest.fixture(scope="session")
def hold() -> Callable[..., Held]:
    """Like `make_job`, wrapped as the queue wraps a reserved job."""
    return lambda number, **members: Held(_make_job(number, **members))


TOY = ModelSpec(ModelId("toy"), "builtin:toy", LatentSpace("toy"), SizeLimits(64, 64, 64, 256, 8))


class Bench:
    """A worker without its loop: the test says which jobs make a batch."""

    def __init__(self, redis, folder, name, engine, *, images=None):
        self.worker_id, self.redis = WorkerId(name), redis
        limits = JobLimits()
        self.jobs = JobStore(redis, limits)
        self.metrics = Metrics(CollectorRegistry())
        self.queue = JobQueue(redis, limits, metrics=self.metrics)
        self.memory_store = MemoryStore(redis)
        self.images = ImageStore.open((folder / "images").as_uri())
        self.device = DeviceThread()
        self.encoders = ThreadPoolExecutor(2)
        self.stop = asyncio.Event()
        self.ahead_ms = 0  # how far the worker's clock is before that of whoever else there is
        self.caps = BatchCaps(max_images=16)
        self.memories = MemoryCache(self.memory_store, budget_bytes=10**8, metrics=self.metrics)
        self.jobs_seen = SimpleNamespace(  # the queue as the runner sees it; tests may come in between
            **{name: getattr(self.queue, name) for name in ("begin", "standing", "show", "commit", "fail")}
        )
        self.model = LoadedModel(TOY, engine)
        engine.listener = EngineMetrics(self.metrics, TOY.model_id)
        self.diversity = DiversityMeter(self.metrics)
        self.parts = RunnerParts(
            models={TOY.model_id: self.model},
            device=self.device,
            memories=self.memories,
            versions=self.memory_store,
            jobs=self.jobs_seen,
            images=images or self.images,
            encoders=self.encoders,
            patience=Patience(self.stop, self.clock_ms, self.metrics),
            caps=CapKeeper(self.caps, self.metrics, now_ms),
            diversity=self.diversity,
            clock_ms=self.clock_ms,
            previews_late_s=PATIENCE_S,
            service_version="0.1.0",
            metrics=self.metrics,
        )
        self.runner = BatchRunner(self.parts)

    def clock_ms(self) -> int:
        """The worker's clock."""
        return now_ms() + self.ahead_ms

    async def reserve(self, *jobs: Job) -> list[ReservedJob]:
        """Accept the jobs and reserve them all, in their order."""
        for job in jobs:
            await self.jobs.accept(job)
        found: dict[str, ReservedJob] = {}
        while len(found) < len(jobs):
            got = await self.queue.reserve([TOY.model_id], self.worker_id, len(jobs), 100)
            assert got, "the queue lost jobs"
            found |= {reserved.job.job_id: reserved for reserved in got}
        return [found[job.job_id] for job in jobs]

    async def run(self, *jobs: Job) -> list[JobRecord]:
        """Run the jobs as one batch, whatever the batcher would say; their records afterwards."""
        await self.runner.run(await self.reserve(*jobs))
        return [await self.jobs.get(job.tenant_id, job.job_id) for job in jobs]

    def start(self, reserved: list[ReservedJob]) -> asyncio.Task[None]:
        """A batch that runs meanwhile."""
        return asyncio.create_task(self.runner.run(reserved))

    async def pngs(self, record: JobRecord) -> list[bytes]:
        """The files of a job that succeeded."""
        assert record.result is not None, record.failure
        return [await self.images.get(image.storage_key) for image in record.result.images]

    async def version(self, tenant: str = "acme", name: str = "default") -> int:
        """How many entries a memory has had."""
        return await self.memory_store.version(
            MemoryKey(TenantId(tenant), LatentSpace("toy"), MemoryName(name))
        )

    async def close(self) -> None:
        """End its threads."""
        await asyncio.to_thread(self.device.close)
        self.encoders.shutdown()


@pytest.fixture
async def open_bench(redis, tmp_path):
    """A function that opens a worker without its loop; all of a test share Redis and images."""
    async with AsyncExitStack() as stack:

        def open_one(name: str = "one", engine=None, **members) -> Bench:
            bench = Bench(redis, tmp_path, name, engine or ToyEngine(preset_named("toy")), **members)
            stack.push_async_callback(bench.close)
            return bench

        yield open_one


@pytest.fixture
async def bench(open_bench) -> Bench:
    """One worker without its loop."""
    return open_bench()
