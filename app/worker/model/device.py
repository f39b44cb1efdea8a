"""One thread owns the device: whatever touches an engine runs there, one call after another."""

import asyncio
import contextvars
import inspect
import queue
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from app.errors import Unavailable

_RESUMABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]
    context: contextvars.Context


class DeviceThread:
    """Runs functions on its one thread and answers on the caller's event loop.

    Whatever a function raises reaches its waiter, and the thread lives on. A waiter that was cancelled before its
    turn is passed over; a running function is never interrupted. It runs in its caller's context, as log lines and spans need.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._thread.start()

    async def run(self, function: Callable[[], T]) -> T:
        """The function's result, or what it raised; Unavailable once closed."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        with self._lock:
            if self._closed:
                raise Unavailable("the worker is stopping: its device takes no more work")
            self._calls.put(_Call(function, loop, answer, contextvars.copy_context()))
        return await answer

    def close(self, timeout_s: float | None = None) -> bool:
        """Finish the running function, refuse those that wait, end the thread. Twice without harm.

        Blocks until the thread has ended, or for `timeout_s`; False where the running function took longer than that.
        """
        with self._lock:
            if not self._closed:
                self._closed = True
                self._calls.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._closed:
                _answer(call, None, Unavailable("the worker stopped before this call's turn on the device"))
            elif not call.answer.cancelled():
                _run(call)


def _run(call: _Call) -> None:
    try:
        result = call.context.run(call.function)
    except BaseException as error:  # noqa: BLE001 the thread must survive any function, and its waiter be told
        _release(error)
        _answer(call, None, _awaitable(error))
    else:
        _answer(call, result, None)


def _release(error: BaseException) -> None:
    """Drop what the failed call had in hand: the error would hold it, and a batch's tensors with it, during a retry.

    Frames that could be resumed are left alone: an error raised for a second time still names its first waiters.
    """
    link: BaseException | None = error
    while link is not None:
        for frame, _ in traceback.walk_tb(link.__traceback__):
            if not frame.f_code.co_flags & _RESUMABLE:
                with suppress(RuntimeError):  # it still runs
                    frame.clear()
        link = link.__context__


def _awaitable(error: BaseException) -> BaseException:
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(
        f"a call on the device raised {type(error).__name__}"
    )  # a future refuses StopIteration,
    wrapped.__cause__ = error  # and SystemExit or KeyboardInterrupt must not end the event loop
    return wrapped


def _answer(call: _Call, result: Any, error: BaseException | None) -> None:
    def settle() -> None:
        if call.answer.done():
            return
        if error is None:
            call.answer.set_result(result)
        else:
            call.answer.set_exception(error)

    try:
        call.loop.call_soon_threadsafe(settle)
    except RuntimeError:  # the waiter's loop is closed, and nobody waits any more
        return
