"""The thread that owns the device."""

import asyncio
import threading
import traceback
import weakref

import pytest
from patience import PATIENCE_S

from app.errors import Unavailable
from app.worker.model.device import DeviceThread

pytestmark = pytest.mark.anyio


@pytest.fixture
def device():
    """A device thread, closed after the test."""
    thread = DeviceThread()
    yield thread
    thread.close()


async def test_all_calls_run_on_one_thread_in_order(device):
    """Calls from many waiters never overlap and keep their order."""
    ran = []

    def note(number):
        ran.append(number)
        return threading.get_ident(), number

    answers = await asyncio.gather(*(device.run(lambda n=number: note(n)) for number in range(20)))
    assert len({ident for ident, _ in answers}) == 1
    assert answers[0][0] != threading.get_ident()
    assert [number for _, number in answers] == ran == list(range(20))


@pytest.mark.parametrize("raised", [ValueError("no"), MemoryError(), asyncio.CancelledError()], ids=repr)
async def test_an_exception_reaches_its_waiter_and_the_thread_survives(device, raised):
    """The next call works as if nothing had happened."""

    def fail():
        raise raised

    with pytest.raises((type(raised), RuntimeError)):
        await device.run(fail)
    assert await device.run(lambda: 5) == 5


class Tensors:
    """What a batch has in hand on the device."""


async def test_a_failed_call_holds_nothing(device):
    """Its tensors, and those of the error before it, are free for the next try; the traceback still says where."""
    alive = weakref.WeakSet()

    def fill():
        tensors = Tensors()
        alive.add(tensors)
        raise MemoryError(id(tensors))

    def fail():
        tensors = Tensors()
        alive.add(tensors)
        try:
            fill()
        except MemoryError as error:
            raise ValueError(id(tensors)) from error

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is an address
        await device.run(fail)
    assert len(alive) == 0
    assert [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)][-1] == "fail"


async def test_an_error_raised_twice_hurts_no_waiter(device):
    """Its traceback still names the coroutine that saw it first, which goes on all the same."""
    error = ValueError("the same object each time")

    def fail():
        raise error

    for _ in range(2):
        try:
            await device.run(fail)
        except ValueError as raised:
            assert raised is error  # noqa: PT017 - a block that ends while this coroutine goes on
    assert await device.run(lambda: 5) == 5


@pytest.mark.parametrize("raised", [StopIteration(), SystemExit(3), KeyboardInterrupt()], ids=repr)
async def test_what_a_future_cannot_carry_arrives_wrapped(device, raised):
    """Exceptions that would end the loop or hang the waiter arrive as RuntimeError with their cause."""

    def fail():
        raise raised

    with pytest.raises(RuntimeError) as caught:
        await device.run(fail)
    assert caught.value.__cause__ is raised
    assert await device.run(lambda: 5) == 5


async def test_close_finishes_the_running_call_and_refuses_the_rest(device):
    """The running call answers; the waiting one and every later one get an error instead of silence."""
    started, release = threading.Event(), threading.Event()

    def slow():
        started.set()
        release.wait(PATIENCE_S)
        return "done"

    running = asyncio.create_task(device.run(slow))
    waiting = asyncio.create_task(device.run(lambda: "never"))
    assert await asyncio.to_thread(started.wait, PATIENCE_S)
    closing = asyncio.create_task(asyncio.to_thread(device.close))
    while True:
        try:
            late = asyncio.create_task(device.run(lambda: "late"))
            await asyncio.wait_for(asyncio.shield(late), 0.05)
        except Unavailable:
            break
        except TimeoutError:
            late.cancel()
    release.set()
    assert await running == "done"
    with pytest.raises(Unavailable):
        await waiting
    await closing
    device.close()


async def test_a_cancelled_waiter_is_passed_over(device):
    """What nobody waits for any more does not run."""
    started, release, ran = threading.Event(), threading.Event(), []

    def slow():
        started.set()
        return release.wait(PATIENCE_S)

    running = asyncio.create_task(device.run(slow))
    cancelled = asyncio.create_task(device.run(lambda: ran.append("cancelled")))
    assert await asyncio.to_thread(started.wait, PATIENCE_S)
    cancelled.cancel()
    await asyncio.sleep(0)
    release.set()
    assert await running
    await device.run(lambda: ran.append("after"))
    assert ran == ["after"]


def test_a_waiter_whose_loop_is_gone_does_no_harm():
    """The thread serves the next loop after one was closed under a running call."""
    device = DeviceThread()
    started, release = threading.Event(), threading.Event()

    def slow():
        started.set()
        return release.wait(PATIENCE_S)

    async def leave():
        waiter = asyncio.create_task(device.run(slow))
        await asyncio.to_thread(started.wait, PATIENCE_S)
        waiter.cancel()

    asyncio.run(leave())
    release.set()
    assert asyncio.run(device.run(lambda: 7)) == 7
    device.close()
