"""Loops that run side by side and end together."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def run_together(*loops: Coroutine[Any, Any, None]) -> None:
    """Returns once all have. What one of them raises is raised, after the others were cancelled and have ended."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            task.result()
