"""Pictures of a tenant's own become entries of a memory: read, encoded on the device, stored as images, committed."""

import asyncio
from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from app.domain.encoding import EncodedImage, EncodeRequest, EncodeResult
from app.domain.ids import image_id
from app.domain.job import JobKind
from app.errors import NotFound, PictureGone
from app.images.store import image_key, sent_picture_key
from app.jobs.types import ReservedJob
from app.memory.codec import MemoryEntry, encode_entry
from app.memory.keys import MemoryKey
from app.telemetry.tracing import span
from app.worker.course.committing import Finished
from app.worker.course.course import NotWanted, TooLate
from app.worker.course.job_spans import batch_named
from app.worker.course.parts import RunnerParts
from app.worker.course.pictures import decode_picture, remove_or_leave
from app.worker.loops.loop import Runner
from app.worker.model.models import LoadedModel, embed_on_device

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
        self._course = parts.course

    async def run(self, batch: Sequence[ReservedJob]) -> None:
        """End every job of the batch. Raises nothing for a job's sake.

        Redis or the object store away: what reads or writes them is repeated until the job's deadline, and the end of a
        job until it is written or the worker stops.
        """
        for reserved in batch:
            with batch_named(), self._course.ender.spans.during([reserved]):
                await self._course.carry_out(reserved, "pictures_not_encoded", partial(self._run, reserved))

    async def _run(self, reserved: ReservedJob) -> None:
        course = self._course
        await course.begin(reserved)
        finished, images = await course.patiently(reserved, lambda: self._encode(reserved))
        try:
            await course.patiently(reserved, lambda: course.check_wanted(reserved))
        except (NotWanted, TooLate):
            await remove_or_leave(self._parts.images, images)
            raise
        is_done = await course.commit(reserved, finished)
        sent = [_sent_key(reserved, index) for index in range(len(images))]
        await remove_or_leave(self._parts.images, sent if is_done else images)

    async def _encode(self, reserved: ReservedJob) -> tuple[Finished, list[str]]:
        """What is to be committed, and the images that were stored. Raises PictureGone, CorruptRecord, StoreUnavailable."""
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
        return Finished(result, entries, point.current), [image.storage_key for image in images]

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
