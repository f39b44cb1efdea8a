"""From a form with a picture to an accepted job: the picture is stored for good before its job is."""

from dataclasses import replace

from app.domain.ids import JobId, ModelId, TenantId, make_job_id
from app.domain.job import JobKind
from app.domain.model import ModelSpec
from app.domain.request import Edit, EditKind, GenerationRequest
from app.errors import CannotEdit, InvalidValue, ServiceError, StoreUnavailable
from app.http.bodies.generation import find_model, to_request
from app.http.course.submission import Wish, accept_job, discard_pictures
from app.http.deps import Deps
from app.http.forms.edit_form import EditBody, EditForm
from app.http.forms.pictures import PreparedPicture
from app.images.store import picture_key
from app.jobs.types import Accepted

DEFAULT_STRENGTH: dict[EditKind, float] = {"image": 0.8, "mask": 1.0}


async def submit_edit(tenant_id: TenantId, form: EditForm, wish: Wish, deps: Deps) -> Accepted:
    """Makes a job of the form and accepts it; the job that stands for it, an earlier one where its key has one.

    Raises what is wrong with the form, CannotEdit, QueueFull, IdempotencyMismatch, StoreUnavailable. Where no job of its
    own was accepted, nothing stays stored; where Redis does not say whether it was, the sweep finds out.
    """
    body = form.body
    spec = find_model(body.model, deps.catalogue)
    await _check_ability(spec.model_id, "image" if form.mask is None else "mask", deps)
    prepared = await deps.pictures.prepare(
        form.image.file, None if form.mask is None else form.mask.file, size=body.size, limits=spec.size
    )
    request = _to_request(form, prepared, spec, deps)
    job_id = make_job_id(deps.now_ms(), deps.randomness(8))
    try:
        await _store(tenant_id, job_id, prepared, deps)
    except StoreUnavailable:
        await discard_pictures(job_id, _keys_of(tenant_id, job_id), deps)
        raise
    try:
        accepted = await accept_job(tenant_id, request, wish, kind=JobKind.EDIT, job_id=job_id, deps=deps)
    except StoreUnavailable:
        raise
    except ServiceError:
        await discard_pictures(job_id, _keys_of(tenant_id, job_id), deps)
        raise
    if accepted.job_id != job_id:
        await discard_pictures(job_id, _keys_of(tenant_id, job_id), deps)
    return accepted


async def models_edits(deps: Deps) -> dict[ModelId, frozenset[EditKind]]:
    """How the models that workers have loaded can edit; a model that none has loaded now is not there."""
    found: dict[ModelId, frozenset[EditKind]] = {}
    for worker in await deps.registry.list_workers():
        if worker.phase == "ready":
            for model in worker.models:
                found[model] = found.get(model, frozenset()) | worker.edits.get(model, frozenset())
    return found


async def _check_ability(model: ModelId, kind: EditKind, deps: Deps) -> None:
    """Raises CannotEdit. Where no worker has the model, only the one that will can tell, and it does."""
    able = (await models_edits(deps)).get(model)
    if able is not None and kind not in able:
        ways = " or ".join(f"with {'a mask' if way == 'mask' else 'an image alone'}" for way in sorted(able))
        raise CannotEdit(
            f"model {model} can edit only {ways}" if ways else f"model {model} cannot edit pictures",
            param="model",
        )


def _to_request(form: EditForm, prepared: PreparedPicture, spec: ModelSpec, deps: Deps) -> GenerationRequest:
    width_px, height_px = prepared.size_px
    sized: EditBody = form.body.model_copy(update={"size": f"{width_px}x{height_px}"})
    request = to_request(sized, spec, deps.randomness)
    edit = Edit(1.0, form.image.sha256, None if form.mask is None else form.mask.sha256)
    given = form.body.edit_strength
    edit = replace(edit, strength=DEFAULT_STRENGTH[edit.kind] if given is None else given)
    if int(request.steps * edit.strength) < 1:  # as the pipelines count them
        raise InvalidValue(
            f"edit_strength: expected one step at least, got {edit.strength:g} of {request.steps} steps; give more of one"
            " of them",
            param="edit_strength",
        )
    return replace(request, edit=edit)


async def _store(tenant_id: TenantId, job_id: JobId, prepared: PreparedPicture, deps: Deps) -> None:
    await deps.images.put(picture_key(tenant_id, job_id, "picture"), prepared.picture)
    if prepared.mask is not None:
        await deps.images.put(picture_key(tenant_id, job_id, "mask"), prepared.mask)


def _keys_of(tenant_id: TenantId, job_id: JobId) -> tuple[str, str]:
    return picture_key(tenant_id, job_id, "picture"), picture_key(tenant_id, job_id, "mask")
