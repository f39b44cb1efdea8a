"""What engines tell of themselves, as metrics of their model."""

from dataclasses import dataclass

from app.domain.ids import ModelId
from app.telemetry.metrics import Metrics
from sparke_engine.diffusion.timing import RunTimes


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """The listener of one model's engine."""

    metrics: Metrics
    model: ModelId

    def embedded(self, *, is_known: bool) -> None:
        """Counts a prompt."""
        self.metrics.prompt_embedding_lookups.labels(self.model, "hit" if is_known else "miss").inc()

    def finished(self, times: RunTimes) -> None:
        """Tells where a batch's time went."""
        self.metrics.guidance_seconds.labels(self.model).observe(times.guidance_s)
        self.metrics.decode_seconds.labels(self.model).observe(times.decode_s)
        for step_s in times.steps_s:
            self.metrics.denoise_step_seconds.labels(self.model).observe(step_s)
