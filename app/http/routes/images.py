"""Making images and showing them."""

import asyncio
import base64
from collections.abc import Awaitable
from typing import Annotated, TypeVar
from urllib.parse import urlencode

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.domain.ids import ImageId, TenantId, make_job_id, parse_image_id, parse_tenant_id
from app.domain.job import Job, JobKind, JobRecord, JobState
from app.domain.request import GenerationRequest
from app.domain.result import GeneratedImage, GenerationResult
from app.errors import JobFailed, NotFound, QueueFull, ServiceError, Unauthenticated, WaitTimeout
from app.http.answers import GenerationAnswer, ImageAnswer, count_usage, describe_image
from app.http.auth import Tenant
from app.http.deps import Deps, DepsOf
from app.http.errors import error_of_failure
from app.http.generation import GenerationBody, find_model, to_request
from app.http.json_body import read_json
from app.http.openapi import GENERATION_DOCS, IMAGE_DOCS

router = APIRouter(prefix="/v1/images", tags=["images"])

_T = TypeVar("_T")


async def read_generation_body(request: Request, _tenant: Tenant, deps: DepsOf) -> GenerationBody:
    """The body; it is read only after the key has been checked."""
    return await read_json(request, GenerationBody, max_bytes=deps.settings.max_body_bytes)


@router.post("/generations", response_model=GenerationAnswer, openapi_extra=GENERATION_DOCS)
async def generate_images(
    request: Request,
    tenant_id: Tenant,
    deps: DepsOf,
    body: Annotated[GenerationBody, Depends(read_generation_body)],
) -> Response:
    """Make images of a prompt, unlike those that the tenant's memory holds.

    The request waits until a worker has made them. A client that goes away does not stop its job: the images are made
    and remembered.
    """
    generation = to_request(body, find_model(body.model, deps.catalogue), deps.randomness)
    job = _make_job(tenant_id, generation, deps)
    await _accept(job, deps)
    timeout_s = deps.settings.request_timeout_s
    record = await _unless_disconnected(request, deps.waiter.wait(tenant_id, job.job_id, timeout_s))
    result = _result_of(record)
    by_url = body.response_format == "url"
    if by_url:
        images = [_show_by_url(request, deps, tenant_id, image) for image in result.images]
    else:
        images = [await _show_inline(deps, image) for image in result.images]
    answer = GenerationAnswer(
        created=deps.now_ms() // 1000,
        data=images,
        size=f"{generation.width_px}x{generation.height_px}",
        usage=count_usage(generation),
        model=generation.model,
        memory_version=result.memory_version,
        novelty_version=result.novelty_version,
        context_version=result.context_version,
    )
    other = "b64_json" if by_url else "url"
    content = answer.model_dump_json(exclude={"data": {"__all__": {other}}})
    return Response(content, media_type="application/json")


@router.get("/{image_id}", response_class=Response, openapi_extra=IMAGE_DOCS)
async def show_image(  # noqa: PLR0917 - the members of a signed URL
    image_id: str,
    deps: DepsOf,
    tenant: Annotated[str, Query(description="The tenant that owns the image.")],
    expires: Annotated[int, Query(ge=0, lt=2**53, description="Until when the URL works (Unix seconds).")],
    signature: Annotated[str, Query(max_length=100, description="What makes the URL genuine.")],
) -> Response:
    """An image by its signed, expiring URL, which needs no key."""
    tenant_id, (job_id, index) = parse_tenant_id(tenant), parse_image_id(image_id)
    now_s = deps.now_ms() / 1000
    try:
        deps.signer.verify(tenant_id, ImageId(image_id), expires, signature=signature, now_s=now_s)
    except Unauthenticated as error:
        raise HTTPException(403, error.message) from error
    record = await deps.jobs.get(tenant_id, job_id)
    images = record.result.images if record.result else ()
    image = next((found for found in images if found.image_id == image_id), None)
    if image is None:
        raise NotFound(f"job {job_id} has no image {index}")
    data = await deps.images.get(image.storage_key)
    headers = {"cache-control": f"private, max-age={max(0, expires - int(now_s))}, immutable"}
    return Response(data, media_type="image/png", headers=headers)


def _make_job(tenant_id: TenantId, generation: GenerationRequest, deps: Deps) -> Job:
    now_ms = deps.now_ms()
    return Job(
        tenant_id=tenant_id,
        job_id=make_job_id(now_ms, deps.randomness(8)),
        kind=JobKind.GENERATE,
        request=generation,
        created_at_ms=now_ms,
        deadline_at_ms=now_ms + int(deps.settings.request_timeout_s * 1000),
    )


async def _accept(job: Job, deps: Deps) -> None:
    model = job.request.model
    try:
        await deps.jobs.accept(job)
    except QueueFull:
        deps.metrics.jobs_refused.labels(model).inc()
        raise
    deps.metrics.jobs_accepted.labels(model).inc()


async def _unless_disconnected(request: Request, awaitable: Awaitable[_T]) -> _T:
    """The awaitable's value; ClientDisconnect, and the awaitable cancelled, as soon as nobody listens any more."""
    waiting = asyncio.ensure_future(awaitable)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        raise ClientDisconnect
    finally:
        for future in (waiting, leaving):
            future.cancel()
        await asyncio.gather(waiting, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    """Returns when the client has closed its connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _result_of(record: JobRecord) -> GenerationResult:
    """The result of a finished job, or its failure as an error."""
    if record.state is JobState.SUCCEEDED and record.result is not None:
        return record.result
    raise _error_of(record)


def _error_of(record: JobRecord) -> ServiceError:
    if record.state is JobState.EXPIRED:
        return WaitTimeout(
            "the job's deadline passed before a worker was free; try again when less is waiting"
        )
    if record.failure is not None:
        return error_of_failure(record.failure)
    return JobFailed(f"the job ended as {record.state.value}", reason=record.state.value)


async def _show_inline(deps: Deps, image: GeneratedImage) -> ImageAnswer:
    data = await deps.images.get(image.storage_key)
    encoded = await to_thread.run_sync(base64.b64encode, data)
    return describe_image(image, b64_json=encoded.decode("ascii"))


def _show_by_url(request: Request, deps: Deps, tenant_id: TenantId, image: GeneratedImage) -> ImageAnswer:
    expires = deps.now_ms() // 1000 + deps.settings.image_url_ttl_s
    query = urlencode(
        {
            "tenant": tenant_id,
            "expires": expires,
            "signature": deps.signer.sign(tenant_id, image.image_id, expires),
        }
    )
    base = deps.settings.public_url or str(request.base_url).rstrip("/")
    return describe_image(image, url=f"{base}/v1/images/{image.image_id}?{query}")
