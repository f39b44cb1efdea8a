"""One batch of images end to end: each job is prepared, the device makes the images of all, each job is finished."""

import asyncio
from collections.abc import Sequence
from functools import partial

from app.jobs.types import ReservedJob
from app.worker.course.finishing import Finisher
from app.worker.course.generating import Generated, Generator
from app.worker.course.job_spans import batch_named
from app.worker.course.parts import RunnerParts
from app.worker.course.preparing import Prepared, Preparer
from app.worker.course.previewer import Previewer
from app.worker.course.watch import BatchWatch


class BatchRunner:
    """Runs batches of compatible jobs. Every job of a batch ends by its own merit, whatever becomes of the others."""

    def __init__(self, parts: RunnerParts) -> None:
        self._parts = parts
        self._course = parts.course
        self._preparer = Preparer(parts)
        self._generator = Generator(parts, self._course.ender.spans)
        self._finisher = Finisher(parts, self._course)

    async def run(self, batch: Sequence[ReservedJob]) -> None:
        """End every job of the batch. Raises nothing for a job's sake.

        Redis or the object store away: what reads or writes them is repeated until the job's deadline, and the end of
        a job until it is written or the worker stops.
        """
        with batch_named(), self._course.ender.spans.during(batch):
            await self._run(batch)

    async def _run(self, batch: Sequence[ReservedJob]) -> None:
        course = self._course
        found = await asyncio.gather(
            *(course.carry_out(one, "job_not_prepared", partial(self._prepare, one)) for one in batch)
        )
        prepared = [one for one in found if one is not None]
        if not prepared:
            return
        reserved = [one.reserved for one in prepared]
        async with (
            Previewer(
                *(self._parts.jobs, self._parts.images, self._parts.encoders),
                late_s=self._parts.previews_late_s,
            ) as previewer,
            BatchWatch(self._parts.jobs, reserved, course.ender.let_go) as watch,
        ):
            showing = [one.showing(previewer) for one in prepared]
            outcomes = await self._generator.generate(showing, watch)
        await asyncio.gather(
            *(
                self._finish(one, outcome)
                for one, outcome in zip(prepared, outcomes, strict=True)
                if not watch.is_gone(one.reserved)
            )
        )

    async def _prepare(self, reserved: ReservedJob) -> Prepared:
        await self._course.begin(reserved)
        prepared = await self._course.patiently(reserved, lambda: self._preparer.prepare(reserved))
        self._course.check_time(reserved)
        return prepared

    async def _finish(self, prepared: Prepared, outcome: Generated | Exception) -> None:
        course, reserved = self._course, prepared.reserved
        if isinstance(outcome, Exception):
            with course.ender.spans.within(reserved):
                await course.ender.fail_for(reserved, outcome, "job_not_generated")
        else:
            finish = partial(self._finisher.finish, prepared, outcome)
            await course.carry_out(reserved, "job_not_finished", finish)
