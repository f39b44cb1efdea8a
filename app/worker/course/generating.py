"""Images of a whole batch on the device at once, and after an error of each job by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import structlog

from app.domain.ids import ModelId
from app.domain.request import GenerationRequest
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import Attribute
from app.worker.course.job_spans import JobSpans
from app.worker.course.parts import RunnerParts
from app.worker.course.preparing import Prepared
from app.worker.course.watch import BatchStopped, BatchWatch
from app.worker.loops.batcher import batch_key
from app.worker.model.models import LoadedModel
from sparke_engine.diffusion.engine import DenoisingPlan, OnStep, Sample, SampleGroup
from sparke_engine.diffusion.loras import LoraScale
from sparke_engine.errors import OutputMismatch

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Generated:
    """A job's samples, and how many images the device batch had that they came from."""

    samples: Sequence[Sample]
    num_batch_images: int


class _Asked(NamedTuple):
    """What an engine is asked for."""

    groups: Sequence[SampleGroup]
    plan: DenoisingPlan
    on_step: OnStep


class Generator:
    """Makes the images of batches whose jobs go together. `spans` are those of the jobs."""

    def __init__(self, parts: RunnerParts, spans: JobSpans) -> None:
        self._parts = parts
        self._spans = spans

    async def generate(self, prepared: Sequence[Prepared], watch: BatchWatch) -> list[Generated | Exception]:
        """Each job's images, or what went wrong with it: the batch at once, and after an error each job alone."""
        model, request = prepared[0].model, prepared[0].job.generation
        groups = [one.group for one in prepared]
        plan = _plan_of(request)
        work = partial(_generate_checked, model, _Asked(groups, plan, watch.on_step), self._parts.metrics)
        key, num_images = batch_key(prepared[0].job), sum(len(group.seeds) for group in groups)
        try:
            with self._spans.batch(
                [one.reserved for one in prepared], {"num_images": num_images, **_told_of(request)}
            ):
                found = await self._parts.device.run(work)
            self._parts.caps.fitted(key, num_images)
            return [Generated(samples, sum(map(len, found))) for samples in found]
        except BatchStopped as stopped:
            return [stopped] * len(prepared)
        except Exception as error:  # noqa: BLE001 - likewise
            self._parts.caps.failed(key, num_images, error)
            if len(prepared) == 1:
                return [error]
            _log.warning("batch_failed_each_job_runs_alone", num_jobs=len(prepared), exc_info=True)
        outcomes: list[Generated | Exception] = []
        for one in prepared:
            if watch.is_gone(one.reserved):
                outcomes.append(BatchStopped())
            else:
                outcomes += await self.generate([one], watch)
        return outcomes


def _generate_checked(model: LoadedModel, asked: _Asked, metrics: Metrics) -> list[list[Sample]]:
    """On the device thread: one batch, timed, and as many images as were asked for."""
    name = model.spec.model_id
    expected = [len(group.seeds) for group in asked.groups]
    metrics.batch_images.labels(name).observe(sum(expected))
    with metrics.batch_seconds.labels(name).time():
        samples = model.engine.generate(asked.groups, asked.plan, _counted(asked.on_step, metrics, name))
    actual = [len(group) for group in samples]
    if actual != expected:
        raise OutputMismatch(f"expected {expected} images for the groups, got {actual}")
    return samples


def _counted(on_step: OnStep, metrics: Metrics, model: ModelId) -> OnStep:
    """Each step is counted when it is done: a device that hangs is told from a long batch."""
    steps = metrics.denoise_steps.labels(model)

    def count(step: int, num_steps: int) -> None:
        steps.inc()
        on_step(step, num_steps)

    return count


def _told_of(request: GenerationRequest) -> dict[str, Attribute]:
    size = f"{request.width_px}x{request.height_px}"
    return {"model": request.model, "steps": request.steps, "size": size}


def _plan_of(request: GenerationRequest) -> DenoisingPlan:
    loras = tuple(LoraScale(lora.name, lora.scale) for lora in request.loras)
    strength = None if request.edit is None else request.edit.strength
    size = request.width_px, request.height_px
    return DenoisingPlan(*size, request.steps, request.guidance_scale, loras, strength)
