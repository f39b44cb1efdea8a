"""From a form with pictures to the images of a memory: the pictures are stored for good before their job is accepted."""

import asyncio

import structlog

from app.domain.encoding import EncodeRequest, EncodeResult
from app.domain.ids import JobId, MemoryName, TenantId, make_job_id, parse_memory_name
from app.domain.job import JobKind, JobRecord
from app.errors import InvalidId, MemoryFrozen, NotFound, ServiceError, StoreUnavailable
from app.http.deps import Deps
from app.http.generation import find_model
from app.http.reference_form import ReferenceForm
from app.http.showing import error_of
from app.http.submission import Wish, accept_job
from app.images.store import sent_picture_key
from app.jobs.types import Accepted
from app.memory.keys import MemoryKey

_log = structlog.get_logger(__name__)


async def submit_pictures(tenant_id: TenantId, form: ReferenceForm, wish: Wish, deps: Deps) -> Accepted:
    """Makes a job of the form and accepts it; the job that stands for it, an earlier one where its key has one.

    Raises what is wrong with the form, MemoryFrozen, QueueFull, MemoryFull, IdempotencyMismatch, StoreUnavailable. Where no
    job of its own was accepted, nothing stays stored; where Redis does not say whether it was, the sweep finds out.
    """
    fields = form.fields
    spec = find_model(fields.model, deps.catalogue)
    name = _parse_name(fields.name)
    if wish.idempotency is None or await deps.jobs.standing_for(tenant_id, wish.idempotency) is None:
        await _check_open(MemoryKey(tenant_id, spec.latent_space, name), deps)
    pngs = [
        await deps.pictures.fit(picture.file, f"image {number}", spec.size)
        for number, picture in enumerate(form.pictures, start=1)
    ]
    digests = tuple(picture.sha256 for picture in form.pictures)
    request = EncodeRequest(spec.model_id, name, fields.prompt or "", digests)
    job_id = make_job_id(deps.now_ms(), deps.randomness(8))
    try:
        for index, png in enumerate(pngs):
            await deps.images.put(sent_picture_key(tenant_id, job_id, index), png)
        accepted = await accept_job(tenant_id, request, wish, kind=JobKind.ENCODE, job_id=job_id, deps=deps)
    except StoreUnavailable:
        raise
    except ServiceError:
        await _discard(tenant_id, job_id, len(pngs), deps)
        raise
    if accepted.job_id != job_id:
        await _discard(tenant_id, job_id, len(pngs), deps)
    return accepted


def result_of_pictures(record: JobRecord) -> EncodeResult:
    """The result of a finished job of pictures, or its failure as an error. Raises MemoryFrozen where they are not remembered."""
    result = record.result
    if not isinstance(result, EncodeResult):
        raise error_of(record)
    if record.committed_version is None:
        raise MemoryFrozen(
            f"memory {result.memory_name!r} was frozen, or all of it was forgotten, while the pictures were read: they are"
            " not remembered; send them again, under another Idempotency-Key where they had one",
            param="name",
        )
    return result


async def _check_open(memory: MemoryKey, deps: Deps) -> None:
    """Raises MemoryFrozen. A memory that is not there yet is made by what is sent to it."""
    try:
        stats = await deps.memories.overview.get(memory)
    except NotFound:
        return
    if stats.shape.is_frozen:
        raise MemoryFrozen(
            f"memory {memory.memory_id} is frozen, so the pictures would not be remembered; PATCH it with frozen false, or"
            " give another name",
            param="name",
        )


async def _discard(tenant_id: TenantId, job_id: JobId, num_pictures: int, deps: Deps) -> None:
    """Removes what belongs to no job; what cannot be removed now is left to the sweep."""
    keys = [sent_picture_key(tenant_id, job_id, index) for index in range(num_pictures)]
    try:
        await asyncio.gather(*(deps.images.delete(key) for key in keys))
    except StoreUnavailable as error:
        deps.metrics.store_errors.labels("images").inc()
        _log.warning("pictures_left_to_sweep", job_id=job_id, error=error.message)


def _parse_name(name: str) -> MemoryName:
    try:
        return parse_memory_name(name)
    except InvalidId as error:
        raise InvalidId(error.message, param="name") from error
