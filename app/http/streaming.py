"""Images as a stream of server-sent events, in the form of the OpenAI API: pictures on the way, then the images."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from anyio import to_thread
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from app.domain.ids import JobId, TenantId
from app.domain.job import JobRecord
from app.errors import NotFound, ServiceError
from app.http.answers import GenerationAnswer
from app.http.deps import Deps
from app.http.errors import describe_error
from app.http.showing import show_inline
from app.jobs.types import JobEvent

UNBUFFERED = {"x-accel-buffering": "no"}  # a proxy in front passes each event on at once
_KIND = "image_generation"


@dataclass(frozen=True, slots=True)
class Streamed:
    """The job whose images are streamed, for how long at most, and whether it ends with its client."""

    tenant_id: TenantId
    job_id: JobId
    timeout_s: float
    cancels: bool


async def stream_images(streamed: Streamed, deps: Deps) -> AsyncIterator[bytes]:
    """The events of one request. What goes wrong after the start is an event `error`, since the status is out."""
    try:
        async for event in _images(streamed, deps):
            yield event
    except ServiceError as error:
        body = {"error": describe_error(error).model_dump()}
        yield format_sse_event(data_str=json.dumps(body), event="error")
    except (asyncio.CancelledError, GeneratorExit):
        if streamed.cancels:
            deps.background.start(deps.jobs.cancel(streamed.tenant_id, streamed.job_id))
        raise


async def read_preview(event: JobEvent, deps: Deps) -> str | None:
    """A preview's PNG in base64; None where it is swept already."""
    try:
        data = await deps.images.get(event.fields["key"])
    except NotFound:
        return None
    return (await to_thread.run_sync(base64.b64encode, data)).decode("ascii")


async def _images(streamed: Streamed, deps: Deps) -> AsyncIterator[bytes]:
    """Previews as they come, and the images after the job's end. Raises why there are none."""
    tenant_id, job_id = streamed.tenant_id, streamed.job_id
    ending = asyncio.ensure_future(deps.waiter.wait(tenant_id, job_id, streamed.timeout_s))
    try:
        shown: set[tuple[str, str]] = set()
        async for event in _until(ending, deps.job_events.follow(tenant_id, job_id)):
            if event is None:
                yield KEEPALIVE_COMMENT
            elif (
                event.type == "preview"
                and (which := (event.fields["image"], event.fields["number"])) not in shown
            ):
                shown.add(which)
                record = await deps.jobs.get(tenant_id, job_id)
                yield _partial(event, record, await read_preview(event, deps))
        record = await ending
    finally:
        ending.cancel()
    answer = await show_inline(record, deps)
    for index in range(len(answer.data)):
        yield _completed(answer, index)


async def _until(
    ending: "asyncio.Future[JobRecord]", events: AsyncIterator[JobEvent | None]
) -> AsyncIterator[JobEvent | None]:
    """The events up to the last one; none more where waiting for the end has failed."""
    while True:
        following = asyncio.ensure_future(anext(events, _OVER))
        try:
            await asyncio.wait((following, ending), return_when=asyncio.FIRST_COMPLETED)
            if not following.done() and ending.exception() is not None:
                return
            event = await following
        finally:
            following.cancel()
        if event is _OVER:
            return
        yield event


_OVER: Any = object()


def _partial(event: JobEvent, record: JobRecord, b64_json: str | None) -> bytes:
    request = record.job.request
    return _event(
        "partial_image",
        {
            "b64_json": b64_json or "",
            "partial_image_index": int(event.fields["number"]),
            "index": int(event.fields["image"]),
            "created_at": record.job.created_at_ms // 1000,
            "size": f"{request.width_px}x{request.height_px}",
        },
    )


def _completed(answer: GenerationAnswer, index: int) -> bytes:
    image = answer.data[index]
    return _event(
        "completed",
        {
            "index": index,
            "created_at": answer.created,
            "size": answer.size,
            "usage": answer.usage.model_dump(),
            "model": answer.model,
            "memory_version": answer.memory_version,
            **image.model_dump(exclude={"url"}),
        },
    )


def _event(kind: str, members: dict[str, Any]) -> bytes:
    name = f"{_KIND}.{kind}"
    shared = {"type": name, "background": "opaque", "output_format": "png", "quality": "auto"}
    return format_sse_event(data_str=json.dumps({**shared, **members}), event=name)
