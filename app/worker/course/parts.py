"""What the runners of a worker work with, and how little they see of it."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from app.domain.ids import ModelId
from app.jobs.types import Progress, ReservedJob, Standing
from app.telemetry.metrics import Metrics
from app.worker.course.course import Begins, JobCourse
from app.worker.course.diversity import DiversityMeter
from app.worker.course.previewer import LATE_S
from app.worker.loops.cap_keeper import CapKeeper
from app.worker.memory.memory_cache import MemoryCache
from app.worker.memory.memory_reader import MemoryVersions
from app.worker.model.device import DeviceThread
from app.worker.model.models import LoadedModel
from app.worker.patience import Patience


class JobEnds(Begins, Protocol):
    """The course of a job, and what is told of it meanwhile. All check the fence: LOST or None is of a job that is not ours."""

    async def standing(self, reserved: ReservedJob, progress: Progress | None = None) -> Standing:
        """How the job stands while it runs; how far it is, is told where given."""
        ...

    async def show(self, reserved: ReservedJob, index: int, number: int, storage_key: str) -> bool:
        """Tell of a preview; False where the job is no more ours."""
        ...


class Images(Protocol):
    """Where images go, and where the pictures are that edits begin with."""

    async def get(self, key: str) -> bytes:
        """A picture's bytes, or NotFound."""
        ...

    async def put(self, key: str, data: bytes) -> None:
        """Write an image, whole or not at all."""
        ...

    async def delete(self, key: str) -> None:
        """Remove an image; one that is not there is no error."""
        ...


@dataclass(frozen=True, slots=True)
class RunnerParts:
    """What a runner works with. `encoders` is a pool for PNG files, `clock_ms` Unix time in milliseconds."""

    models: Mapping[ModelId, LoadedModel]
    device: DeviceThread
    memories: MemoryCache
    versions: MemoryVersions
    jobs: JobEnds
    images: Images
    encoders: Executor
    patience: Patience
    caps: CapKeeper
    diversity: DiversityMeter
    clock_ms: Callable[[], int]
    service_version: str
    metrics: Metrics
    previews_late_s: float = LATE_S

    @property
    def course(self) -> JobCourse:
        """A course for a runner's jobs; the jobs of one batch have one in common."""
        return JobCourse(self.jobs, self.patience, self.metrics, self.clock_ms)
