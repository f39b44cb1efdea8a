"""Tells the caps of batches what became of each, and the log and the metrics what the caps are then."""

from collections.abc import Callable

import structlog

from app.telemetry.metrics import Metrics
from app.worker.failures import is_out_of_memory
from app.worker.loops.batch_caps import BatchCaps, BatchShape
from app.worker.loops.batcher import BatchKey

_log = structlog.get_logger(__name__)


class CapKeeper:
    """Keeps the caps of one worker. `clock_ms` is any clock that does not go back far."""

    def __init__(self, caps: BatchCaps, metrics: Metrics, clock_ms: Callable[[], int]) -> None:
        self._caps = caps
        self._metrics = metrics
        self._clock_ms = clock_ms

    def fitted(self, key: BatchKey, num_images: int) -> None:
        """A batch of the key was made."""
        before = self._caps.cap_of(key)
        cap = self._caps.fitted(key, num_images, self._clock_ms())
        if cap != before:
            _log.info("batch_cap_raised", model=key.model, shape=str(BatchShape.of(key)), cap_images=cap)
        self._show(key)

    def failed(self, key: BatchKey, num_images: int, error: Exception) -> None:
        """A batch of the key was not made. It counts where the device, or the host, had no room for it."""
        if not is_out_of_memory(error):
            return
        self._metrics.batches_out_of_memory.labels(key.model).inc()
        before = self._caps.cap_of(key)
        cap = self._caps.ran_out(key, num_images, self._clock_ms())
        if cap != before:
            _log.warning(
                "batch_cap_lowered",
                model=key.model,
                shape=str(BatchShape.of(key)),
                num_images=num_images,
                cap_images=cap,
            )
        self._show(key)

    def _show(self, key: BatchKey) -> None:
        self._metrics.batch_cap_images.labels(key.model).set(self._caps.least_of(key.model))
