"""Ends tasks that talk to Redis, and waits in a way that can be ended.

One cancellation may not be enough: the client sends through `asyncio.wait_for`, which on Python 3.11 loses a
cancellation that comes as the send completes.
"""

import asyncio
from contextlib import suppress
from typing import Any

_AGAIN_AFTER_S = 0.5


async def end_task(task: asyncio.Task[Any]) -> None:
    """Cancels a task until it has ended. Its result or error stays with it."""
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=_AGAIN_AFTER_S)


async def wait_at_most(event: asyncio.Event, timeout_s: float) -> None:
    """Returns when the event is set, or after `timeout_s`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):  # wait_for of Python 3.11 can lose a cancellation
            await event.wait()
