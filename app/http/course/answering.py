"""From an accepted job to the answer of a route that waits for its images: all at once, or as a stream."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from app.domain.ids import TenantId
from app.http.bodies.generation_bodies import GenerationBody
from app.http.bodies.showing import base_url_of, show_by_url, show_inline, to_json
from app.http.course.streaming import EventStream, Streamed, stream_images
from app.http.course.submission import Wish, cancel_job
from app.http.deps import Deps
from app.http.guard.rate_limit import accepted_headers
from app.jobs.types import Accepted, Idempotency

_T = TypeVar("_T")


def wish_of(body: GenerationBody, idempotency: Idempotency | None, deps: Deps) -> Wish:
    """What the job of a request that waits for it gets."""
    num_previews = (body.partial_images or 0) if body.stream else 0
    return Wish(deps.settings.request_timeout_s, idempotency, num_previews=num_previews)


async def answer_images(
    request: Request, tenant_id: TenantId, accepted: Accepted, *, body: GenerationBody, deps: Deps
) -> Response:
    """The job's images as `body` wants them. Its own body must have been read. Raises the job's failure."""
    job_id, headers = accepted.job_id, accepted_headers(accepted)
    timeout_s = deps.settings.request_timeout_s
    if body.stream:
        streamed = Streamed(tenant_id, job_id, timeout_s, cancels=bool(body.cancel_on_disconnect))
        return EventStream(stream_images(streamed, deps), headers=headers)
    try:
        record = await unless_disconnected(request, deps.waiter.wait(tenant_id, job_id, timeout_s))
    except ClientDisconnect:
        if body.cancel_on_disconnect:
            await asyncio.shield(cancel_job(tenant_id, job_id, deps))
        raise
    if body.response_format == "url":
        answer = show_by_url(record, deps, base_url=base_url_of(request, deps))
    else:
        answer = await show_inline(record, deps)
    return Response(to_json(answer), media_type="application/json", headers=headers)


async def unless_disconnected(request: Request, awaitable: Awaitable[_T]) -> _T:
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
