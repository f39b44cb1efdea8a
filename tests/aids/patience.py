"""How tests wait: for what they look for, for as long as a busy machine needs, and never for a time that they take to be enough."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 60.0
"""Far beyond what anything takes that comes at all, on however busy a machine: only a test that fails waits for so long."""


async def eventually(holds: Callable[[], T | Awaitable[T]], what: str = "") -> T:
    """What `holds` says, or what it is awaited for, once that is true of anything; fails with `what` after the patience."""
    until_s = time.monotonic() + PATIENCE_S
    while True:
        found = holds()
        said = await found if inspect.isawaitable(found) else found
        if said:
            return said
        assert time.monotonic() < until_s, what or f"after {PATIENCE_S:g} s it is still {said!r}"
        await asyncio.sleep(0.01)


def wait_until(holds: Callable[[], T], what: str = "") -> T:
    """The same outside an event loop."""
    until_s = time.monotonic() + PATIENCE_S
    while not (said := holds()):
        assert time.monotonic() < until_s, what or f"after {PATIENCE_S:g} s it is still {said!r}"
        time.sleep(0.02)
    return said
