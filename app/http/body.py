"""Reading a body as it comes, bounded in size and in pauses."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.exceptions import HTTPException


async def read_body(request: Request, *, max_bytes: int, idle_timeout_s: float) -> AsyncIterator[bytes]:
    """The chunks of the body.

    Raises:
        HTTPException: 408 where nothing comes for a while, 413 above `max_bytes`.
        ClientDisconnect: the client went away.
    """
    chunks = request.stream()
    left_bytes = max_bytes
    while True:
        try:
            async with asyncio.timeout(idle_timeout_s):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            raise HTTPException(
                408, f"nothing of the body came for {idle_timeout_s:g} s", {"connection": "close"}
            ) from error
        if chunk is None:
            return
        left_bytes -= len(chunk)
        if left_bytes < 0:
            raise HTTPException(413, f"a body has at most {max_bytes} bytes")
        yield chunk
