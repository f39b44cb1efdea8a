"""What engines tell of themselves, as metrics of their model and as spans of the batch."""

from dataclasses import dataclass

from app.domain.ids import ModelId
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import now_ns, past_span
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
        """Tells where a batch's time went, in metrics and as spans of the batch that has just ended."""
        self.metrics.guidance_seconds.labels(self.model).observe(times.guidance_s)
        self.metrics.decode_seconds.labels(self.model).observe(times.decode_s)
        for step_s in times.steps_s:
            self.metrics.denoise_step_seconds.labels(self.model).observe(step_s)
        decoded_ns = now_ns()
        denoised_ns = decoded_ns - round(times.decode_s * 1e9)
        past_span("denoise", denoised_ns - round(sum(times.steps_s) * 1e9), denoised_ns)
        past_span("decode", denoised_ns, decoded_ns)
