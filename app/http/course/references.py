"""From a form with pictures to the images of a memory: the pictures are stored for good before their job is accepted."""

from app.domain.encoding import EncodeRequest, EncodeResult
from app.domain.ids import TenantId, make_job_id
from app.domain.job import JobKind, JobRecord
from app.errors import MemoryFrozen, NotFound, ServiceError, StoreUnavailable
from app.http.bodies.generation import find_model, to_memory_name
from app.http.bodies.showing import error_of
from app.http.course.submission import Wish, accept_job, discard_pictures
from app.http.deps import Deps
from app.http.forms.reference_form import ReferenceForm
from app.images.store import sent_picture_key
from app.jobs.types import Accepted
from app.memory.keys import MemoryKey


async def submit_pictures(tenant_id: TenantId, form: ReferenceForm, wish: Wish, deps: Deps) -> Accepted:
    """Makes a job of the form and accepts it; the job that stands for it, an earlier one where its key has one.

    Raises what is wrong with the form, MemoryFrozen, QueueFull, MemoryFull, IdempotencyMismatch, StoreUnavailable. Where no
    job of its own was accepted, nothing stays stored; where Redis does not say whether it was, the sweep finds out.
    """
    fields = form.fields
    spec = find_model(fields.model, deps.catalogue)
    name = to_memory_name(fields.name, "name")
    if wish.idempotency is None or await deps.jobs.standing_for(tenant_id, wish.idempotency) is None:
        await _check_open(MemoryKey(tenant_id, spec.latent_space, name), deps)
    pngs = [
        await deps.pictures.fit(picture.file, f"image {number}", spec.size)
        for number, picture in enumerate(form.pictures, start=1)
    ]
    digests = tuple(picture.sha256 for picture in form.pictures)
    request = EncodeRequest(spec.model_id, name, fields.prompt or "", digests)
    job_id = make_job_id(deps.now_ms(), deps.randomness(8))
    keys = [sent_picture_key(tenant_id, job_id, index) for index in range(len(pngs))]
    try:
        for key, png in zip(keys, pngs, strict=True):
            await deps.images.put(key, png)
        accepted = await accept_job(tenant_id, request, wish, kind=JobKind.ENCODE, job_id=job_id, deps=deps)
    except StoreUnavailable:
        raise
    except ServiceError:
        await discard_pictures(job_id, keys, deps)
        raise
    if accepted.job_id != job_id:
        await discard_pictures(job_id, keys, deps)
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
