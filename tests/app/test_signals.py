"""How a main is asked to stop."""

import asyncio
import os
import signal

import pytest
from patience import PATIENCE_S

from app.signals import stop_signals

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_sets_the_event_and_ends_nothing(number: signal.Signals):
    """Also the second one; afterwards the signal means to the process what it meant before."""
    before = signal.getsignal(number)
    with stop_signals() as stop:
        assert signal.getsignal(number) != before
        for _ in range(2):
            os.kill(os.getpid(), number)
            async with asyncio.timeout(PATIENCE_S):
                await stop.wait()
    assert signal.getsignal(number) in {before, signal.SIG_DFL, signal.default_int_handler}
