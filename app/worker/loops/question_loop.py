"""Reserves questions and answers them beside the batches of images, a few at a time, until the worker stops."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from app.jobs.types import ReservedJob
from app.worker.loops.reserving import Reserving

MAX_AT_ONCE = 4
_IDLE_BLOCK_MS = 1000  # also how long a stop may have to wait for a worker that is asked nothing


@dataclass(frozen=True, slots=True)
class QuestionParts:
    """What the loop works with. `answer` ends a question's job; `stop` is set once, from outside."""

    reserving: Reserving
    answer: Callable[[ReservedJob], Awaitable[None]]
    stop: asyncio.Event


class QuestionLoop:
    """Runs beside the loop of images. The device thread is all that they share, where calls have their turns.

    A question is on it for the embedding of its prompt alone, so it waits for the batch that runs, and holds up the next
    one by no more than MAX_AT_ONCE embeddings. No more are reserved than run: the rest stays where others can take it.
    """

    def __init__(self, parts: QuestionParts) -> None:
        self._parts = parts
        self._running: dict[asyncio.Task[None], ReservedJob] = {}

    async def run(self) -> None:
        """Work until `stop` is set; then finish what runs.

        Cancelled, it gives that back: it is then answered elsewhere. So it does after a fault, which counts as an
        attempt of each question, for one of them may have caused it.
        """
        is_forgiven = True
        try:
            while not self._parts.stop.is_set():
                await self._fill()
            while self._running:
                await self._wait_for_one()
        except Exception:
            is_forgiven = False
            raise
        finally:
            await self._drop(is_forgiven=is_forgiven)

    async def _fill(self) -> None:
        room = MAX_AT_ONCE - len(self._running)
        if room <= 0:
            await self._wait_for_one()
            return
        for reserved in await self._parts.reserving.reserve(room, _IDLE_BLOCK_MS):
            self._running[asyncio.ensure_future(self._answer(reserved))] = reserved
        self._collect()

    async def _answer(self, reserved: ReservedJob) -> None:
        await self._parts.answer(reserved)

    async def _wait_for_one(self) -> None:
        await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        self._collect()

    def _collect(self) -> None:
        """Strikes off what has ended. Raises what one of them raised, and strikes that one not."""
        for task in [task for task in self._running if task.done()]:
            task.result()
            del self._running[task]

    async def _drop(self, *, is_forgiven: bool) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        left, self._running = tuple(self._running.values()), {}
        await self._parts.reserving.give_back(left, is_forgiven=is_forgiven)
