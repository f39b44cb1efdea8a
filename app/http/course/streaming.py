"""Images as a stream of server-sent events, in the form of the OpenAI API: pictures on the way, then the images."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from anyio import CancelScope, to_thread
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.types import Receive, Scope, Send

from app.domain.ids import JobId, TenantId
from app.domain.job import Job, JobKind, JobRecord
from app.errors import NotFound, ServiceError
from app.http.bodies.answers import GenerationAnswer
from app.http.bodies.showing import show_inline
from app.http.course.submission import cancel_job
from app.http.deps import Deps
from app.http.error_table import describe_error
from app.jobs.types import JobEvent
from app.redis.cancelling import end_task

_UNBUFFERED = {"x-accel-buffering": "no"}  # a proxy in front passes each event on at once
_KINDS = {JobKind.GENERATE: "image_generation", JobKind.EDIT: "image_edit"}


@dataclass(frozen=True, slots=True)
class Streamed:
    """The job whose images are streamed, for how long at most, and whether it ends with its client."""

    tenant_id: TenantId
    job_id: JobId
    timeout_s: float
    cancels: bool


class EventStream(StreamingResponse):
    """Server-sent events of a generator, which is closed with its client, also where that leaves between two events.

    What it holds a place of, it holds until it is over, however that comes.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        *,
        headers: Mapping[str, str] | None = None,
        slot: ExitStack | None = None,
    ) -> None:
        super().__init__(events, media_type="text/event-stream", headers={**_UNBUFFERED, **(headers or {})})
        self._events = events
        self._slot = slot or ExitStack()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        with self._slot:
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Sends event after event, then closes the generator."""
        try:
            await super().stream_response(send)
        finally:
            with CancelScope(shield=True):
                await self._events.aclose()


async def stream_images(streamed: Streamed, deps: Deps) -> AsyncGenerator[bytes]:
    """The events of one request. What goes wrong after the start is an event `error`, since the status is out."""
    try:
        async with aclosing(_images(streamed, deps)) as events:
            async for event in events:
                yield event
    except ServiceError as error:
        body = {"error": describe_error(error).model_dump()}
        yield format_sse_event(data_str=json.dumps(body), event="error")
    except (asyncio.CancelledError, GeneratorExit):
        if streamed.cancels:
            deps.background.start(cancel_job(streamed.tenant_id, streamed.job_id, deps))
        raise


async def read_preview(event: JobEvent, deps: Deps) -> str | None:
    """A preview's PNG in base64; None where it is swept already."""
    try:
        data = await deps.images.get(event.fields["key"])
    except NotFound:
        return None
    return (await to_thread.run_sync(base64.b64encode, data)).decode("ascii")


async def _images(streamed: Streamed, deps: Deps) -> AsyncGenerator[bytes]:
    """Previews as they come, and the images after the job's end. Raises why there are none."""
    tenant_id, job_id = streamed.tenant_id, streamed.job_id
    ending = asyncio.create_task(deps.waiter.wait(tenant_id, job_id, streamed.timeout_s))
    try:
        shown: set[tuple[str, str]] = set()
        asked: Job | None = None
        async with aclosing(_until(ending, deps.job_events.follow(tenant_id, job_id))) as events:
            async for event in events:
                if event is None:
                    yield KEEPALIVE_COMMENT
                elif event.type == "preview" and _name_of(event) not in shown:
                    shown.add(_name_of(event))
                    asked = asked or (await deps.jobs.get(tenant_id, job_id)).job
                    yield _partial(event, asked, await read_preview(event, deps))
        record = await ending
    finally:
        await end_task(ending)
    answer = await show_inline(record, deps)
    for index in range(len(answer.data)):
        yield _completed(answer, index, record.job.kind)


async def _until(
    ending: "asyncio.Task[JobRecord]", followed: AsyncGenerator[JobEvent | None]
) -> AsyncGenerator[JobEvent | None]:
    """The events up to the last one; none more where waiting for the end has failed."""
    async with aclosing(followed) as events:
        while True:
            following = asyncio.create_task(_next_of(events))
            try:
                await asyncio.wait((following, ending), return_when=asyncio.FIRST_COMPLETED)
                if not following.done() and ending.exception() is not None:
                    return
                event = await following
            finally:
                await end_task(following)
            if event is _OVER:
                return
            yield event


async def _next_of(events: AsyncGenerator[JobEvent | None]) -> Any:
    return await anext(events, _OVER)


def _name_of(preview: JobEvent) -> tuple[str, str]:
    """Which image it shows, and which of its previews it is: a batch that runs again shows them again."""
    return preview.fields["image"], preview.fields["number"]


_OVER: Any = object()


def _partial(event: JobEvent, job: Job, b64_json: str | None) -> bytes:
    request = job.generation
    return _event(
        job.kind,
        "partial_image",
        {
            "b64_json": b64_json or "",
            "partial_image_index": int(event.fields["number"]),
            "index": int(event.fields["image"]),
            "created_at": job.created_at_ms // 1000,
            "size": f"{request.width_px}x{request.height_px}",
        },
    )


def _completed(answer: GenerationAnswer, index: int, kind: JobKind) -> bytes:
    image = answer.data[index]
    return _event(
        kind,
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


def _event(kind: JobKind, what: str, members: dict[str, Any]) -> bytes:
    name = f"{_KINDS[kind]}.{what}"
    shared = {"type": name, "background": "opaque", "output_format": "png", "quality": "auto"}
    return format_sse_event(data_str=json.dumps({**shared, **members}), event=name)
