"""Ends tasks that talk to Redis.

One cancellation may not be enough: the client sends through `asyncio.wait_for`, which on Python 3.11 loses a
cancellation that comes as the send completes.
"""

import asyncio
from typing import Any

_AGAIN_AFTER_S = 0.5


async def end_task(task: asyncio.Task[Any]) -> None:
    """Cancels a task until it has ended. Its result or error stays with it."""
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=_AGAIN_AFTER_S)
