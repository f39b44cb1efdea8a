"""The Redis of `chaos.py`, either of which can be killed again and again: one server, or a master that sentinels watch."""

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Protocol

from sentinel_scene import SentinelScene

from app.redis.embedded import EmbeddedRedis

_MAX_AWAY_S = 1.0


class ChaosRedis(Protocol):
    """Where it is, and what can be done to it."""

    @property
    def url(self) -> str:
        """What SPARKE_REDIS_URL is."""

    @property
    def num_replicas(self) -> int:
        """What SPARKE_REDIS_REPLICAS is."""

    async def kill(self, dice: random.Random) -> None:
        """SIGKILL to the server that takes writes. It is there again when this returns."""

    def stop(self) -> None:
        """Ends everything."""


class OneServer:
    """A Redis with `appendfsync always` and nobody beside it. It comes back within a second."""

    num_replicas = 0

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = EmbeddedRedis.start(folder)

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._server.url

    async def kill(self, dice: random.Random) -> None:
        """It is away for up to a second."""
        os.kill(self._server.pid or 0, signal.SIGKILL)
        await asyncio.to_thread(self._server.stop)
        await asyncio.sleep(dice.uniform(0.0, _MAX_AWAY_S))
        self._server = await asyncio.to_thread(EmbeddedRedis.start, self._folder)

    def stop(self) -> None:
        """Ends it."""
        self._server.stop()


class WatchedServers:
    """A master, two replicas and three sentinels. One replica must have what is acknowledged.

    A master that was silent for `down_after_ms` is taken for dead. One that lives, on a busy machine, is then replaced while it takes writes, and what
    it takes until it hears of that is lost, as in any fail-over whose writes are not paused (docs/sentinel.md).
    """

    num_replicas = 1

    def __init__(self, folder: Path, *, down_after_ms: int = 5_000) -> None:
        self.scene = SentinelScene.start(folder, down_after_ms=down_after_ms)

    @property
    def url(self) -> str:
        """Where the sentinels are."""
        return self.scene.url

    async def kill(self, dice: random.Random) -> None:
        """The sentinels make a replica the master; the former one comes back and follows it.

        There are two replicas again when this returns, as whoever kills masters one after the other has to wait for.
        """
        master = await asyncio.to_thread(lambda: self.scene.master_port)
        self.scene.send(master, signal.SIGKILL)
        while await asyncio.to_thread(lambda: self.scene.master_port) == master:  # noqa: ASYNC110 - it rings no bell
            await asyncio.sleep(0.1)
        await asyncio.sleep(dice.uniform(0.0, _MAX_AWAY_S))
        self.scene.start_dead()
        await asyncio.to_thread(self.scene.mend)

    def stop(self) -> None:
        """Ends all of them."""
        self.scene.stop()
