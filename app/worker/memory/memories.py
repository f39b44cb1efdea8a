"""Opens a worker's copies of memories, and keeps their snapshots."""

import asyncio
from functools import partial

import structlog
from redis.asyncio import Redis

from app.errors import ConfigurationError
from app.memory.snapshot_keys import SnapshotKeys
from app.memory.store import MemoryStore
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.worker.heartbeat import quietly, repeat
from app.worker.memory.memory_cache import MemoryCache
from app.worker.memory.snapshot_keeper import SnapshotKeeper
from app.worker.memory.snapshots import SnapshotFolder

_CLOSE_S = 8.0  # beyond drain_timeout_s, at the worst
_NOT_WRITTEN = "memory_snapshots_not_written"

_log = structlog.get_logger(__name__)


class Memories:
    """Copies of memories, and what keeps snapshots of them where a folder is given."""

    def __init__(self, redis: Redis, settings: Settings, metrics: Metrics) -> None:
        """Raises ConfigurationError where the folder cannot be made."""
        self._keeper = _open_keeper(redis, settings)
        self._interval_s = settings.memory_snapshots_interval_s
        self.copies = MemoryCache(
            MemoryStore(redis),
            budget_bytes=settings.memory_cache_bytes,
            metrics=metrics,
            snapshots=self._keeper,
        )

    async def keep_saving(self) -> None:
        """Writes snapshots now and then, for ever."""
        if self._keeper is None:
            await asyncio.Event().wait()
        else:
            await repeat(partial(self._keeper.save, self.copies), _NOT_WRITTEN, interval_s=self._interval_s)

    async def close(self) -> None:
        """Writes those that are due, once nothing is asked of the copies any more."""
        if self._keeper is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_S):
                await quietly(partial(self._keeper.save, self.copies), _NOT_WRITTEN)
        except TimeoutError:
            _log.warning(_NOT_WRITTEN, reason=f"not done after {_CLOSE_S} s")
        finally:
            self._keeper.give_up()  # else a thread that writes still would hold up the end of the process


def _open_keeper(redis: Redis, settings: Settings) -> SnapshotKeeper | None:
    folder, max_bytes = settings.memory_snapshots_dir, settings.memory_snapshots_bytes
    if folder is None or max_bytes == 0:
        return None
    try:
        opened = SnapshotFolder.open(folder, max_bytes=max_bytes)
    except OSError as error:
        raise ConfigurationError(f"SPARKE_MEMORY_SNAPSHOTS_DIR: {folder} cannot be used: {error}") from error
    return SnapshotKeeper(opened, SnapshotKeys(redis))
