"""Editing pictures."""

from fastapi import APIRouter, Request, Response

from app.http.bodies.answers import GenerationAnswer
from app.http.course.answering import answer_images, wish_of
from app.http.course.edits import submit_edit
from app.http.course.submission import IdempotencyKey, idempotency_of
from app.http.deps import DepsOf
from app.http.forms.edit_form import receive_edit
from app.http.guard.auth import Tenant
from app.http.openapi.error_docs import fails_with
from app.http.openapi.form_docs import EDIT_DOCS

router = APIRouter(prefix="/v1/images", tags=["images"])


@router.post(
    "/edits",
    response_model=GenerationAnswer,
    responses=fails_with(400, 404, 408, 409, 410, 413, 415, 422, 429, 504),
    openapi_extra=EDIT_DOCS,
)
async def edit_image(
    request: Request, tenant_id: Tenant, deps: DepsOf, *, idempotency_key: IdempotencyKey
) -> Response:
    """Make images that begin with a picture: all of it, or what a mask marks, becomes what the prompt says.

    The mask's fully transparent pixels are what is repainted; every other pixel of the image stays as it is. The images
    have the size of the image that was sent, or `size`, to which it is scaled. They are jobs, remembered, and unlike what
    the tenant's memory holds, as those of `/v1/images/generations` are.
    """
    settings = deps.settings
    with deps.uploads.hold(tenant_id), deps.metrics.file_uploads_in_flight.track_inprogress():
        async with receive_edit(
            request,
            max_picture_bytes=settings.max_picture_bytes,
            timeout_s=settings.upload_timeout_s,
        ) as form:
            body = form.body
            mask = "-" if form.mask is None else form.mask.sha256
            idempotency = idempotency_of(request, body, idempotency_key, files=(form.image.sha256, mask))
            accepted = await submit_edit(tenant_id, form, wish_of(body, idempotency, deps), deps)
    return await answer_images(request, tenant_id, accepted, body=body, deps=deps)
