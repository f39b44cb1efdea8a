"""One batch end to end: memories and neighbours, the device, PNG files, the commit."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol

import structlog
import torch
from torch import Tensor

from app.domain.ids import ModelId, image_id
from app.domain.job import Job, JobState
from app.domain.request import GenerationRequest
from app.domain.result import Failure, GeneratedImage, GenerationResult
from app.images.store import image_key
from app.jobs.transitions import EXPIRED
from app.jobs.types import Committed, Progress, ReservedJob, Standing
from app.memory.codec import MemoryEntry, encode_entry
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import Attribute, span
from app.worker.batcher import batch_key
from app.worker.cap_keeper import CapKeeper
from app.worker.committing import Commits, Committer, Finished
from app.worker.device import DeviceThread
from app.worker.diversity import DiversityMeter, MadeImages
from app.worker.ending import JobEnder
from app.worker.job_spans import batch_named
from app.worker.memory_cache import MemoryCache
from app.worker.memory_reader import MemoryReader, MemoryVersions, ReadMemories
from app.worker.models import LoadedModel, embed_on_device
from app.worker.patience import Patience
from app.worker.pictures import read_picture, remove_or_leave
from app.worker.png import ImageOrigin, encode_png, image_metadata
from app.worker.previewer import LATE_S, Previewer
from app.worker.references import ReadReferences, ReferenceReader
from app.worker.watch import BatchStopped, BatchWatch
from sparke_engine.diffusion.engine import DenoisingPlan, OnStep, Sample, SampleGroup
from sparke_engine.diffusion.loras import LoraScale
from sparke_engine.errors import OutputMismatch

_log = structlog.get_logger(__name__)


class JobEnds(Commits, Protocol):
    """How a job begins and ends. All check the fence: an answer of LOST or None is that of a job which is not ours."""

    async def begin(self, reserved: ReservedJob) -> Standing:
        """Say that the job is about to run."""
        ...

    async def standing(self, reserved: ReservedJob, progress: Progress | None = None) -> Standing:
        """How the job stands while it runs; how far it is, is told where given."""
        ...

    async def show(self, reserved: ReservedJob, index: int, number: int, storage_key: str) -> bool:
        """Tell of a preview; False where the job is no more ours."""
        ...

    async def fail(self, reserved: ReservedJob, failure: Failure) -> JobState | None:
        """End the job with a failure; the state it then has."""
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


@dataclass(frozen=True, slots=True)
class _Prepared:
    reserved: ReservedJob
    model: LoadedModel
    group: SampleGroup
    prompt_embedding: Tensor
    read: ReadMemories
    references: ReadReferences

    @property
    def job(self) -> Job:
        return self.reserved.job

    def showing(self, previewer: Previewer) -> "_Prepared":
        """The same, with the previews that the job wants."""
        return replace(self, group=replace(self.group, previews=previewer.of(self.reserved)))


@dataclass(frozen=True, slots=True)
class _Generated:
    """A job's samples, and how many images the device batch had that they came from."""

    samples: Sequence[Sample]
    num_batch_images: int


class _Asked(NamedTuple):
    """What an engine is asked for."""

    groups: Sequence[SampleGroup]
    plan: DenoisingPlan
    on_step: OnStep


class BatchRunner:
    """Runs batches of compatible jobs. Every job of a batch ends by its own merit, whatever becomes of the others."""

    def __init__(self, parts: RunnerParts) -> None:
        self._parts = parts
        self._ender = JobEnder(parts.jobs, parts.patience, parts.metrics, parts.clock_ms)
        self._committer = Committer(parts.jobs, parts.patience, parts.metrics)
        self._reader = MemoryReader(parts.versions, parts.memories, parts.metrics)
        self._references = ReferenceReader(self._reader)

    async def run(self, batch: Sequence[ReservedJob]) -> None:
        """End every job of the batch. Raises nothing for a job's sake.

        Redis or the object store away: what reads or writes them is repeated until the job's deadline, and the end of
        a job until it is written or the worker stops.
        """
        with batch_named(), self._ender.spans.during(batch):
            await self._run(batch)

    async def _run(self, batch: Sequence[ReservedJob]) -> None:
        found = await asyncio.gather(*(self._prepare_or_fail(reserved) for reserved in batch))
        prepared = [one for one in found if one is not None]
        if not prepared:
            return
        reserved = [one.reserved for one in prepared]
        async with (
            Previewer(
                *(self._parts.jobs, self._parts.images, self._parts.encoders),
                late_s=self._parts.previews_late_s,
            ) as previewer,
            BatchWatch(self._parts.jobs, reserved, self._ender.let_go) as watch,
        ):
            showing = [one.showing(previewer) for one in prepared]
            outcomes = await self._generate(showing, watch)
        await asyncio.gather(
            *(
                self._finish_or_fail(one, outcome)
                for one, outcome in zip(prepared, outcomes, strict=True)
                if not watch.is_gone(one.reserved)
            )
        )

    async def _prepare_or_fail(self, reserved: ReservedJob) -> _Prepared | None:
        with self._ender.spans.within(reserved):
            return await self._prepare_wanted(reserved)

    async def _prepare_wanted(self, reserved: ReservedJob) -> _Prepared | None:
        if self._ender.is_late(reserved):
            await self._ender.fail(reserved, EXPIRED)
            return None
        until_ms = reserved.job.deadline_at_ms
        try:
            standing = await self._parts.patience.call(
                lambda: self._parts.jobs.begin(reserved), until_ms=until_ms
            )
            if standing is not Standing.OURS:
                await self._ender.let_go(reserved, standing)
                return None
            prepared = await self._parts.patience.call(lambda: self._prepare(reserved), until_ms=until_ms)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job ends with it and its batch-mates go on
            await self._ender.fail_for(reserved, error, "job_not_prepared")
            return None
        if self._ender.is_late(reserved):
            await self._ender.fail(reserved, EXPIRED)
            return None
        return prepared

    async def _prepare(self, reserved: ReservedJob) -> _Prepared:
        request = reserved.job.generation
        model = self._parts.models[request.model]
        embedding = await self._parts.device.run(partial(embed_on_device, model, request.prompt))
        tenant_id = reserved.job.tenant_id
        read = await self._reader.read(tenant_id, request.diversity, model, embedding)
        references = await self._references.read(tenant_id, request.diversity, model)
        group = SampleGroup(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seeds=request.seeds,
            strength=request.diversity.strength,
            neighbours=read.neighbours,
            latent_bandwidth=request.diversity.latent_bandwidth,
            prompt_bandwidth=request.diversity.prompt_bandwidth,
            references=references.sets,
            picture=await read_picture(reserved.job, model, self._parts.images, self._parts.encoders),
        )
        return _Prepared(reserved, model, group, embedding, read, references)

    async def _generate(
        self, prepared: Sequence[_Prepared], watch: BatchWatch
    ) -> list[_Generated | Exception]:
        """Each job's images, or what went wrong with it: the batch at once, and after an error each job alone."""
        model, request = prepared[0].model, prepared[0].job.generation
        groups = [one.group for one in prepared]
        plan = _plan_of(request)
        work = partial(_generate_checked, model, _Asked(groups, plan, watch.on_step), self._parts.metrics)
        key, num_images = batch_key(prepared[0].job), sum(len(group.seeds) for group in groups)
        try:
            with self._ender.spans.batch(
                [one.reserved for one in prepared], {"num_images": num_images, **_told_of(request)}
            ):
                found = await self._parts.device.run(work)
            self._parts.caps.fitted(key, num_images)
            return [_Generated(samples, sum(map(len, found))) for samples in found]
        except BatchStopped as stopped:
            return [stopped] * len(prepared)
        except Exception as error:  # noqa: BLE001 - likewise
            self._parts.caps.failed(key, num_images, error)
            if len(prepared) == 1:
                return [error]
            _log.warning("batch_failed_each_job_runs_alone", num_jobs=len(prepared), exc_info=True)
        outcomes: list[_Generated | Exception] = []
        for one in prepared:
            if watch.is_gone(one.reserved):
                outcomes.append(BatchStopped())
            else:
                outcomes += await self._generate([one], watch)
        return outcomes

    async def _finish_or_fail(self, prepared: _Prepared, outcome: _Generated | Exception) -> None:
        with self._ender.spans.within(prepared.reserved):
            if isinstance(outcome, Exception):
                await self._ender.fail_for(prepared.reserved, outcome, "job_not_generated")
                return
            try:
                await self._finish(prepared, outcome)
            except Exception as error:  # noqa: BLE001 - likewise
                await self._ender.fail_for(prepared.reserved, error, "job_not_finished")

    async def _finish(self, prepared: _Prepared, generated: _Generated) -> None:
        job, reserved, samples = prepared.job, prepared.reserved, generated.samples
        images = await asyncio.gather(
            *(self._store_image(prepared, index, generated) for index in range(len(samples)))
        )
        memory = job.generation.diversity.memory
        result = GenerationResult(
            tuple(images),
            prepared.model.spec.latent_space,
            memory.name,
            prepared.read.point.version,
            novelty_version=prepared.references.novelty_version,
            context_version=prepared.references.context_version,
            also_versions=prepared.read.also_versions,
        )
        now_ms = self._parts.clock_ms()
        entries = [_entry(prepared, index, sample, now_ms) for index, sample in enumerate(samples)]
        written = entries if memory.write else []
        finished = Finished(result, written, prepared.read.point.current)
        with span("commit", {"num_entries": len(written)}):
            committed = await self._committer.commit(reserved, finished)
        if isinstance(committed, Committed):
            self._ender.count(reserved, JobState.SUCCEEDED, **_told_of_samples(generated))
            num_written = 0 if committed.memory_version is None else len(written)
            self._count_images(prepared, samples, num_written=num_written)
            return
        self._ender.count(reserved, JobState.CANCELLED if committed else None)
        await remove_or_leave(self._parts.images, (image.storage_key for image in images))

    async def _store_image(self, prepared: _Prepared, index: int, generated: _Generated) -> GeneratedImage:
        job, sample = prepared.job, generated.samples[index]
        origin = ImageOrigin(
            image_id=image_id(job.job_id, index),
            index=index,
            memory_version=prepared.read.point.version,
            num_batch_images=generated.num_batch_images,
            service_version=self._parts.service_version,
            novelty_version=prepared.references.novelty_version,
            context_version=prepared.references.context_version,
            also_versions=prepared.read.also_versions,
        )
        loop = asyncio.get_running_loop()
        metadata = image_metadata(job.generation, origin)
        with span("encode PNG", {"index": index}):
            png = await loop.run_in_executor(self._parts.encoders, encode_png, sample.image, metadata)
        key = image_key(job.tenant_id, job.job_id, prepared.reserved.fence, index)
        with span("store image", {"index": index, "size_bytes": len(png)}):
            await self._parts.patience.call(
                lambda: self._parts.images.put(key, png), store="images", until_ms=job.deadline_at_ms
            )
        return GeneratedImage(
            image_id=origin.image_id,
            seed=metadata.seed,
            storage_key=key,
            size_bytes=len(png),
            num_neighbours=sample.num_neighbours,
            nearest_similarity=sample.nearest_similarity,
            push=sample.push,
        )

    def _count_images(self, prepared: _Prepared, samples: Sequence[Sample], *, num_written: int) -> None:
        metrics, model = self._parts.metrics, prepared.job.model
        metrics.images.labels(model).inc(len(samples))
        metrics.memory_entries_appended.labels(model).inc(num_written)
        for sample in samples:
            metrics.push.labels(model).observe(sample.push)
            metrics.neighbours.labels(model).observe(sample.num_neighbours)
        features = torch.stack([sample.feature for sample in samples])
        made = MadeImages(
            prepared.job.tenant_id,
            prepared.group.strength,
            features,
            prepared.prompt_embedding,
            prepared.read.chosen,
        )
        self._parts.diversity.note(model, prepared.model.engine.preset, made)


def _generate_checked(model: LoadedModel, asked: _Asked, metrics: Metrics) -> list[list[Sample]]:
    """On the device thread: one batch, timed, and as many images as were asked for."""
    name = model.spec.model_id
    expected = [len(group.seeds) for group in asked.groups]
    metrics.batch_images.labels(name).observe(sum(expected))
    with metrics.batch_seconds.labels(name).time():
        samples = model.engine.generate(asked.groups, asked.plan, asked.on_step)
    actual = [len(group) for group in samples]
    if actual != expected:
        raise OutputMismatch(f"expected {expected} images for the groups, got {actual}")
    return samples


def _told_of(request: GenerationRequest) -> dict[str, Attribute]:
    size = f"{request.width_px}x{request.height_px}"
    return {"model": request.model, "steps": request.steps, "size": size}


def _told_of_samples(generated: _Generated) -> dict[str, Attribute]:
    """What the log and the span of a job that succeeded have of its images."""
    samples = generated.samples
    return {
        "num_batch_images": generated.num_batch_images,
        "push": round(sum(sample.push for sample in samples) / len(samples), 4),
        "num_neighbours": max(sample.num_neighbours for sample in samples),
    }


def _plan_of(request: GenerationRequest) -> DenoisingPlan:
    loras = tuple(LoraScale(lora.name, lora.scale) for lora in request.loras)
    strength = None if request.edit is None else request.edit.strength
    size = request.width_px, request.height_px
    return DenoisingPlan(*size, request.steps, request.guidance_scale, loras, strength)


def _entry(prepared: _Prepared, index: int, sample: Sample, now_ms: int) -> bytes:
    return encode_entry(
        MemoryEntry(
            image_id=image_id(prepared.job.job_id, index),
            seed=prepared.group.seeds[index],
            created_at_ms=now_ms,
            feature=sample.feature.numpy(),
            prompt_embedding=prepared.prompt_embedding.numpy(),
            prompt=prepared.group.prompt if prepared.read.point.keeps_prompts else "",
        )
    )
