"""Reading a body as it comes, bounded in size, in pauses and in coding."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.exceptions import HTTPException


async def read_body(request: Request, *, max_bytes: int, idle_timeout_s: float) -> AsyncIterator[bytes]:
    """The chunks of the body.

    Raises:
        HTTPException: 408 where nothing comes for a while, 413 above `max_bytes`, 415 where it is compressed: nobody can
            bound what it would become.
        ClientDisconnect: the client went away.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise HTTPException(415, f"send the body as it is: content-encoding {coding[:40]!r} is not read")
    chunks = request.stream()
    left_bytes = max_bytes
    while True:
        try:
            async with asyncio.timeout(idle_timeout_s):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            raise too_slow(f"nothing of the body came for {idle_timeout_s:g} s") from error
        if chunk is None:
            return
        left_bytes -= len(chunk)
        if left_bytes < 0:
            raise HTTPException(413, f"a body has at most {max_bytes} bytes")
        yield chunk


def too_slow(message: str) -> HTTPException:
    """408, after which the connection is closed: what is left of the body is not read."""
    return HTTPException(408, message, {"connection": "close"})
