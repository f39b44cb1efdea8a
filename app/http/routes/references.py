"""References: pictures of a tenant's own, in a memory."""

from fastapi import APIRouter, Request, Response

from app.http.bodies.showing import base_url_of
from app.http.course.answering import unless_disconnected
from app.http.course.reference_answers import REFERENCE_DOCS, ReferenceAnswer, describe_reference, memory_of
from app.http.course.references import submit_pictures
from app.http.course.submission import IdempotencyKey, Wish, idempotency_of
from app.http.deps import DepsOf
from app.http.forms.reference_form import receive_reference
from app.http.guard.auth import Tenant
from app.http.guard.rate_limit import accepted_headers
from app.http.openapi.error_docs import fails_with

router = APIRouter(prefix="/v1/references", tags=["references"])


@router.post(
    "",
    response_model=ReferenceAnswer,
    responses=fails_with(400, 404, 408, 409, 410, 413, 415, 422, 429, 504),
    openapi_extra=REFERENCE_DOCS,
)
async def add_pictures(
    request: Request, tenant_id: Tenant, deps: DepsOf, *, idempotency_key: IdempotencyKey
) -> Response:
    """Remember pictures of your own, as if they had been made.

    A model's autoencoder reads them, and they become entries of the memory that `name` names, which is made where there is
    none. What has a name there can be led away from (`diversity.novelty`), toward (`diversity.context`), or be the memory
    of images to come. They count as images made, in quotas too; all of them are remembered, or none.
    """
    settings = deps.settings
    with deps.uploads.hold(tenant_id), deps.metrics.file_uploads_in_flight.track_inprogress():
        async with receive_reference(
            request,
            max_picture_bytes=settings.max_picture_bytes,
            timeout_s=settings.upload_timeout_s,
        ) as form:
            digests = [picture.sha256 for picture in form.pictures]
            idempotency = idempotency_of(request, form.fields, idempotency_key, files=digests)
            wish = Wish(settings.request_timeout_s, idempotency)
            accepted = await submit_pictures(tenant_id, form, wish, deps)
    waiting = deps.waiter.wait(tenant_id, accepted.job_id, settings.request_timeout_s)
    record = await unless_disconnected(request, waiting)
    stats = await deps.memories.overview.get(memory_of(record))
    answer = describe_reference(record, stats, deps, base_url=base_url_of(request, deps))
    return Response(
        answer.model_dump_json(), media_type="application/json", headers=accepted_headers(accepted)
    )
