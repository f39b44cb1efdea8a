"""Brings previews from the device thread to the object store and into the job's events. None of it holds up a batch."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from types import TracebackType
from typing import Protocol, Self

import structlog
from PIL import Image

from app.domain.ids import JobId
from app.errors import ServiceError
from app.images.store import preview_key
from app.jobs.types import ReservedJob
from app.redis.cancelling import end_task
from app.worker.course.png import encode_png
from sparke_engine.diffusion.previews import Previews

LATE_S = 2.0  # how long the end of a batch waits for previews that are on their way

_log = structlog.get_logger(__name__)


class PreviewEvents(Protocol):
    """Where a preview is told of."""

    async def show(self, reserved: ReservedJob, index: int, number: int, storage_key: str) -> bool:
        """Tell of a preview; False where the job is no more this worker's."""
        ...


class PreviewSink(Protocol):
    """Where previews go."""

    async def put(self, key: str, data: bytes) -> None:
        """Write an image, whole or not at all."""
        ...


class Previewer:
    """An async context manager around a batch; at its end every preview has been shown, or is given up soon.

    A job's previews end with the first that cannot be shown: they are a courtesy, and the job goes on.
    """

    def __init__(
        self, events: PreviewEvents, images: PreviewSink, encoders: Executor, *, late_s: float = LATE_S
    ) -> None:
        self._late_s = late_s
        self._events = events
        self._images = images
        self._encoders = encoders
        self._loop = asyncio.get_running_loop()
        self._showing: dict[JobId, asyncio.Task[None]] = {}  # the latest of each job
        self._given_up: set[JobId] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._showing:
            await asyncio.wait(self._showing.values(), timeout=self._late_s)
        await asyncio.gather(*(end_task(task) for task in self._showing.values()))

    def of(self, reserved: ReservedJob) -> Previews | None:
        """What the job's group asks the engine for; None where the job wants no previews."""
        if reserved.job.num_previews == 0:
            return None

        def show(number: int, images: Sequence[Image.Image]) -> None:
            self._loop.call_soon_threadsafe(self._start, reserved, number, tuple(images))

        return Previews(reserved.job.num_previews, show)

    def _start(self, reserved: ReservedJob, number: int, images: tuple[Image.Image, ...]) -> None:
        job_id = reserved.job.job_id
        before = self._showing.get(job_id)
        self._showing[job_id] = self._loop.create_task(self._show(reserved, number, images, after=before))

    async def _show(
        self,
        reserved: ReservedJob,
        number: int,
        images: tuple[Image.Image, ...],
        *,
        after: asyncio.Task[None] | None,
    ) -> None:
        job = reserved.job
        if after is not None:
            await asyncio.wait((after,))
        if job.job_id in self._given_up:
            return
        try:
            for index, image in enumerate(images):
                png = await self._loop.run_in_executor(self._encoders, encode_png, image)
                key = preview_key(job.tenant_id, job.job_id, reserved.fence, index, number=number)
                await self._images.put(key, png)
                await self._events.show(reserved, index, number, key)
        except ServiceError as error:
            self._given_up.add(job.job_id)
            _log.warning("previews_given_up", job_id=job.job_id, reason=error.message)
        except Exception:  # noqa: BLE001 - whatever it is, the job goes on
            self._given_up.add(job.job_id)
            _log.exception("previews_given_up", job_id=job.job_id)
