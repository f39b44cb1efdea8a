"""Pictures of a tenant's own become entries of a memory: read, encoded on the device, stored as images, committed."""

import asyncio
from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from app.domain.encoding import EncodedImage, EncodeRequest, EncodeResult
from app.domain.ids import image_id
from app.domain.job import JobKind, JobState
from app.errors import NotFound, PictureGone
from app.images.store import image_key, sent_picture_key
from app.jobs.transitions import EXPIRED
from app.jobs.types import Committed, ReservedJob, Standing
from app.memory.codec import MemoryEntry, encode_entry
from app.memory.keys import MemoryKey
from app.telemetry.tracing import span
from app.worker.committing import Committer, Finished
from app.worker.ending import JobEnder
from app.worker.job_spans import batch_named
from app.worker.loop import Runner
from app.worker.models import LoadedModel, embed_on_device
from app.worker.pictures import decode_picture, remove_or_leave
from app.worker.runner import RunnerParts

UPLOAD_SEED = 0  # no seed makes a picture that was sent


class RunnerByKind:
    """Gives a batch to whom its jobs' kind is for. Pictures are encoded alone, so a batch is of one of the two."""

    def __init__(self, images: Runner, pictures: Runner) -> None:
        self._images = images
        self._pictures = pictures

    async def run(self, batch: Sequence[ReservedJob]) -> None:
        """End every job of the batch."""
        is_encoding = batch[0].job.kind is JobKind.ENCODE
        await (self._pictures if is_encoding else self._images).run(batch)


class PictureRunner:
    """Ends jobs of pictures, each by its own merit."""

    def __init__(self, parts: RunnerParts) -> None:
        self._parts = parts
        self._ender = JobEnder(parts.jobs, parts.patience, parts.metrics, parts.clock_ms)
        self._committer = Committer(parts.jobs, parts.patience, parts.metrics)

    async def run(self, batch: Sequence[ReservedJob]) -> None:
        """End every job of the batch. Raises nothing for a job's sake.

        Redis or the object store away: what reads or writes them is repeated until the job's deadline, and the end of a
        job until it is written or the worker stops.
        """
        for reserved in batch:
            with batch_named(), self._ender.spans.during([reserved]), self._ender.spans.within(reserved):
                try:
                    await self._run(reserved)
                except Exception as error:  # noqa: BLE001 - whatever it is, the job ends with it and the others go on
                    await self._ender.fail_for(reserved, error, "pictures_not_encoded")

    async def _run(self, reserved: ReservedJob) -> None:
        patience, jobs, until_ms = self._parts.patience, self._parts.jobs, reserved.job.deadline_at_ms
        if self._ender.is_late(reserved):
            await self._ender.fail(reserved, EXPIRED)
            return
        standing = await patience.call(lambda: jobs.begin(reserved), until_ms=until_ms)
        if standing is not Standing.OURS:
            await self._ender.let_go(reserved, standing)
            return
        entries, result, seen = await patience.call(lambda: self._encode(reserved), until_ms=until_ms)
        standing = await patience.call(lambda: jobs.standing(reserved), until_ms=until_ms)
        if standing is Standing.OURS and not self._ender.is_late(reserved):
            await self._commit(reserved, result, entries, seen)
            return
        if standing is Standing.OURS:
            await self._ender.fail(reserved, EXPIRED)
        else:
            await self._ender.let_go(reserved, standing)
        await remove_or_leave(self._parts.images, (image.storage_key for image in result.images))

    async def _commit(
        self, reserved: ReservedJob, result: EncodeResult, entries: Sequence[bytes], seen_version: int
    ) -> None:
        with span("commit", {"num_entries": len(entries)}):
            committed = await self._committer.commit(reserved, Finished(result, entries, seen_version))
        if isinstance(committed, Committed):
            self._ender.count(reserved, JobState.SUCCEEDED)
            num_written = 0 if committed.memory_version is None else len(entries)
            self._parts.metrics.memory_entries_appended.labels(reserved.job.model).inc(num_written)
            sent = (_sent_key(reserved, index) for index in range(len(result.images)))
            await remove_or_leave(self._parts.images, sent)
            return
        self._ender.count(reserved, JobState.CANCELLED if committed else None)
        await remove_or_leave(self._parts.images, (image.storage_key for image in result.images))

    async def _encode(self, reserved: ReservedJob) -> tuple[list[bytes], EncodeResult, int]:
        """The entries, the result, and how far the memory had come before. Raises PictureGone, CorruptRecord, StoreUnavailable."""
        job, request = reserved.job, reserved.job.request
        if not isinstance(request, EncodeRequest):
            raise TypeError(f"expected pictures, got {job.job_id} of the kind {job.kind}")
        model = self._parts.models[request.model]
        memory = MemoryKey(job.tenant_id, model.spec.latent_space, request.memory)
        point = await self._parts.versions.resolve_version(memory, None)
        pngs = [await self._read(reserved, index) for index in range(request.num_images)]
        loop = asyncio.get_running_loop()
        pictures = [
            await loop.run_in_executor(self._parts.encoders, decode_picture, png, "RGB") for png in pngs
        ]
        features, embedding = await self._parts.device.run(
            partial(_on_device, model, pictures, request.prompt)
        )
        now_ms = self._parts.clock_ms()
        entries = [
            encode_entry(
                MemoryEntry(
                    image_id(job.job_id, index),
                    UPLOAD_SEED,
                    now_ms,
                    feature.numpy().astype(np.float16),
                    embedding.numpy().astype(np.float16),
                    request.prompt if point.keeps_prompts else "",
                )
            )
            for index, feature in enumerate(features)
        ]
        images = [await self._store(reserved, index, png) for index, png in enumerate(pngs)]
        result = EncodeResult(tuple(images), memory.latent_space, memory.name, point.version)
        return entries, result, point.current

    async def _read(self, reserved: ReservedJob, index: int) -> bytes:
        try:
            return await self._parts.images.get(_sent_key(reserved, index))
        except NotFound as error:
            raise PictureGone("the pictures are no longer kept; send them again", param="image") from error

    async def _store(self, reserved: ReservedJob, index: int, png: bytes) -> EncodedImage:
        job = reserved.job
        key = image_key(job.tenant_id, job.job_id, reserved.fence, index)
        await self._parts.images.put(key, png)
        return EncodedImage(image_id(job.job_id, index), key, len(png))


def _sent_key(reserved: ReservedJob, index: int) -> str:
    return sent_picture_key(reserved.job.tenant_id, reserved.job.job_id, index)


def _on_device(model: LoadedModel, pictures: Sequence[Image.Image], prompt: str) -> tuple[Tensor, Tensor]:
    """Features `[n, d]` and the prompt's embedding `[p]`. Where whole latents are kept, pictures get the model's own size."""
    if model.engine.preset.grid is None:
        size = model.spec.size
        own_px = (size.default_width_px, size.default_height_px)
        pictures = [ImageOps.fit(picture, own_px, Image.Resampling.LANCZOS) for picture in pictures]
    with span("encode pictures", {"num_images": len(pictures)}):
        features = model.engine.encode_pictures(pictures)
    return features, embed_on_device(model, prompt)
