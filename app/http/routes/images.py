"""Making images and showing them."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.exceptions import HTTPException

from app.domain.ids import ImageId, parse_image_id, parse_tenant_id
from app.errors import NotFound, Unauthenticated
from app.http.bodies.answers import GenerationAnswer
from app.http.bodies.generation_bodies import GenerationBody
from app.http.bodies.json_body import read_json
from app.http.course.answering import answer_images, wish_of
from app.http.course.submission import IdempotencyKey, idempotency_of, submit
from app.http.deps import DepsOf
from app.http.forms.thumbnails import MAX_PX, MIN_PX, Thumbnailer
from app.http.guard.auth import Tenant
from app.http.openapi.document import GENERATION_DOCS, IMAGE_DOCS
from app.http.openapi.error_docs import fails_with

router = APIRouter(prefix="/v1/images", tags=["images"])


async def read_generation_body(request: Request, _tenant: Tenant, deps: DepsOf) -> GenerationBody:
    """The body; it is read only after the key has been checked."""
    return await read_json(request, GenerationBody, max_bytes=deps.settings.max_body_bytes)


@router.post(
    "/generations",
    response_model=GenerationAnswer,
    responses=fails_with(400, 404, 409, 410, 413, 415, 422, 429, 504),
    openapi_extra=GENERATION_DOCS,
)
async def generate_images(
    request: Request,
    tenant_id: Tenant,
    deps: DepsOf,
    *,
    body: Annotated[GenerationBody, Depends(read_generation_body)],
    idempotency_key: IdempotencyKey,
) -> Response:
    """Make images of a prompt, unlike those that the tenant's memory holds.

    The request waits until a worker has made them. A client that goes away does not stop its job: the images are made
    and remembered, unless `cancel_on_disconnect` says otherwise.
    """
    idempotency = idempotency_of(request, body, idempotency_key)
    accepted = await submit(tenant_id, body, wish_of(body, idempotency, deps), deps)
    return await answer_images(request, tenant_id, accepted, body=body, deps=deps)


@router.get(
    "/{image_id}",
    response_class=Response,
    responses=fails_with(400, 403, 404, 405, 503),  # 405: `generations` is no image
    openapi_extra=IMAGE_DOCS,
)
async def show_image(  # noqa: PLR0917 - the members of a signed URL
    image_id: str,
    deps: DepsOf,
    tenant: Annotated[str, Query(description="The tenant that owns the image.")],
    expires: Annotated[int, Query(ge=0, lt=2**53, description="Until when the URL works (Unix seconds).")],
    signature: Annotated[str, Query(max_length=100, description="What makes the URL genuine.")],
    max_px: Annotated[
        int | None,
        Query(
            ge=MIN_PX,
            le=MAX_PX,
            description="For a thumbnail: its longer side at most. It may be added to any URL.",
        ),
    ] = None,
) -> Response:
    """An image by its signed, expiring URL, which needs no key: the PNG file, or a thumbnail as WebP."""
    tenant_id, (job_id, index) = parse_tenant_id(tenant), parse_image_id(image_id)
    now_s = deps.now_ms() / 1000
    try:
        deps.signer.verify(tenant_id, ImageId(image_id), expires, signature=signature, now_s=now_s)
    except Unauthenticated as error:
        raise HTTPException(403, error.message) from error
    record = await deps.jobs.get(tenant_id, job_id)
    image = next((found for found in record.images if found.image_id == image_id), None)
    if image is None:
        raise NotFound(f"job {job_id} has no image {index}")
    headers = {
        "cache-control": f"private, max-age={max(0, expires - int(now_s))}, immutable",
        "cross-origin-resource-policy": "cross-origin",  # whoever has the URL may show it in a page of another site
    }
    read = partial(deps.images.get, image.storage_key)
    if max_px is None:
        return Response(await read(), media_type="image/png", headers=headers)
    small = await deps.thumbnails.make(read, max_px)
    return Response(small, media_type=Thumbnailer.MEDIA_TYPE, headers=headers)
