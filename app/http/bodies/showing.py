"""A finished job as the images API answers it: its images inline or by signed URLs, or its failure."""

import base64
from urllib.parse import urlencode

from anyio import to_thread
from fastapi import Request

from app.domain.ids import TenantId
from app.domain.job import JobRecord, JobState, StoredImage
from app.domain.request import GenerationRequest
from app.domain.result import GeneratedImage, GenerationResult
from app.errors import JobFailed, ServiceError, WaitTimeout
from app.http.bodies.answers import GenerationAnswer, ImageAnswer, ReadAnswer, count_usage, describe_image
from app.http.deps import Deps
from app.http.error_table import error_of_failure


def base_url_of(request: Request, deps: Deps) -> str:
    """Where the client of a request reaches the API."""
    return deps.settings.public_url or str(request.base_url).rstrip("/")


async def show_inline(record: JobRecord, deps: Deps) -> GenerationAnswer:
    """The answer with the images in it. Raises the job's failure, and NotFound where an image is gone."""
    images = [await _encode(deps, image) for image in result_of(record).images]
    return _answer(record, images)


def show_by_url(
    record: JobRecord, deps: Deps, *, base_url: str, ttl_s: int | None = None
) -> GenerationAnswer:
    """The answer with URLs that work for `ttl_s` from now, or as the settings say. Raises the job's failure."""
    expires_s = deps.now_ms() // 1000 + (deps.settings.image_url_ttl_s if ttl_s is None else ttl_s)
    images = [
        describe_image(image, url=f"{base_url}{_signed_path(record.job.tenant_id, image, expires_s, deps)}")
        for image in result_of(record).images
    ]
    return _answer(record, images)


def image_url(record: JobRecord, image: StoredImage, deps: Deps, *, base_url: str) -> str:
    """A URL that shows one image of a job, for as long as the settings say."""
    expires_s = deps.now_ms() // 1000 + deps.settings.image_url_ttl_s
    return f"{base_url}{_signed_path(record.job.tenant_id, image, expires_s, deps)}"


def result_of(record: JobRecord) -> GenerationResult:
    """The result of a finished job, or its failure as an error."""
    if record.state is JobState.SUCCEEDED and isinstance(record.result, GenerationResult):
        return record.result
    raise error_of(record)


def error_of(record: JobRecord) -> ServiceError:
    """Why a finished job has no images."""
    if record.state is JobState.EXPIRED:
        return WaitTimeout(
            "the job's deadline passed before a worker was free; try again when less is waiting"
        )
    if record.failure is not None:
        return error_of_failure(record.failure)
    return JobFailed(f"the job ended as {record.state.value}", reason=record.state.value)


def to_json(answer: GenerationAnswer) -> str:
    """The answer's JSON; of `b64_json` and `url` it has the one that is there."""
    absent = "url" if answer.data and answer.data[0].b64_json is not None else "b64_json"
    return answer.model_dump_json(exclude={"data": {"__all__": {absent}}})


def _answer(record: JobRecord, images: list[ImageAnswer]) -> GenerationAnswer:
    result, request = result_of(record), record.job.generation
    return GenerationAnswer(
        created=record.job.created_at_ms // 1000,
        data=images,
        size=f"{request.width_px}x{request.height_px}",
        usage=count_usage(request),
        model=request.model,
        memory_version=result.memory_version,
        also=_also_of(request, result),
        novelty_version=result.novelty_version,
        context_version=result.context_version,
    )


def _also_of(request: GenerationRequest, result: GenerationResult) -> list[ReadAnswer] | None:
    also = zip(request.diversity.memory.also, result.also_versions, strict=True)
    return [ReadAnswer(name=memory.name, version=version) for memory, version in also] or None


async def _encode(deps: Deps, image: GeneratedImage) -> ImageAnswer:
    data = await deps.images.get(image.storage_key)
    encoded = await to_thread.run_sync(base64.b64encode, data)
    return describe_image(image, b64_json=encoded.decode("ascii"))


def _signed_path(tenant_id: TenantId, image: StoredImage, expires_s: int, deps: Deps) -> str:
    query = urlencode(
        {
            "tenant": tenant_id,
            "expires": expires_s,
            "signature": deps.signer.sign(tenant_id, image.image_id, expires_s),
        }
    )
    return f"/v1/images/{image.image_id}?{query}"
