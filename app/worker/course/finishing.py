"""From samples to the end of their job: PNG files in the store, entries for the memory, the commit."""

import asyncio
from collections.abc import Sequence

import torch

from app.domain.ids import image_id
from app.domain.result import GeneratedImage, GenerationResult
from app.images.store import image_key
from app.memory.codec import MemoryEntry, encode_entry
from app.telemetry.tracing import Attribute, span
from app.worker.course.committing import Finished
from app.worker.course.course import JobCourse
from app.worker.course.diversity import MadeImages
from app.worker.course.generating import Generated
from app.worker.course.parts import RunnerParts
from app.worker.course.pictures import remove_or_leave
from app.worker.course.png import ImageOrigin, encode_png, image_metadata
from app.worker.course.preparing import Prepared
from sparke_engine.diffusion.engine import Sample


class Finisher:
    """Ends jobs whose images were made. `course` is that which the jobs began with."""

    def __init__(self, parts: RunnerParts, course: JobCourse) -> None:
        self._parts = parts
        self._course = course

    async def finish(self, prepared: Prepared, generated: Generated) -> None:
        """Stores the images and commits the job; where it had ended otherwise, its images go again.

        Raises StoreUnavailable, CorruptRecord and what an encoder raises; images are then left to the sweep.
        """
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
        if await self._course.commit(reserved, finished, _told_of(generated)):
            self._count(prepared, samples)
        else:
            await remove_or_leave(self._parts.images, (image.storage_key for image in images))

    async def _store_image(self, prepared: Prepared, index: int, generated: Generated) -> GeneratedImage:
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

    def _count(self, prepared: Prepared, samples: Sequence[Sample]) -> None:
        metrics, model = self._parts.metrics, prepared.job.model
        metrics.images.labels(model).inc(len(samples))
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


def _told_of(generated: Generated) -> dict[str, Attribute]:
    """What the log and the span of a job that succeeded have of its images."""
    samples = generated.samples
    return {
        "num_batch_images": generated.num_batch_images,
        "push": round(sum(sample.push for sample in samples) / len(samples), 4),
        "num_neighbours": max(sample.num_neighbours for sample in samples),
    }


def _entry(prepared: Prepared, index: int, sample: Sample, now_ms: int) -> bytes:
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
