"""Every metric of the service, declared here alone: docs/metrics.md is made of it. Labels take few values: never a tenant, job or prompt."""

from collections.abc import Iterable
from typing import Self

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, disable_created_metrics

from app.telemetry.metrics.declaring import OTHER, Process
from app.telemetry.metrics.device import DeviceMetrics, ImageMetrics, WorkerMetrics
from app.telemetry.metrics.http import METHODS, BatchMetrics, FileMetrics, HttpMetrics, WebhookMetrics
from app.telemetry.metrics.jobs import FAILURE_REASONS, JobMetrics, QueueMetrics
from app.telemetry.metrics.memory import DiversityMetrics, MemoryMetrics
from app.telemetry.metrics.redis import RedisMetrics

_FAULTS = ("500", "503", "504")  # which a rule on 5xx asks for


class Metrics(
    HttpMetrics,
    JobMetrics,
    QueueMetrics,
    DeviceMetrics,
    ImageMetrics,
    MemoryMetrics,
    DiversityMetrics,
    WorkerMetrics,
    FileMetrics,
    BatchMetrics,
    WebhookMetrics,
    RedisMetrics,
):
    """The metrics of one process, on the registry it was given or a new one. `model` is an id of the catalogue."""

    def __init__(self, registry: CollectorRegistry | None = None, process: Process | None = None) -> None:
        """`process`: which one's metrics are exposed; None is all."""
        super().__init__(CollectorRegistry() if registry is None else registry, process)

    @classmethod
    def of_process(cls, process: Process) -> Self:
        """What a main opens: its metrics, and those of the process and the interpreter that every client exposes."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, which nobody asks for
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        return cls(registry, process)

    def begin_routes(self, routes: Iterable[tuple[str, str]]) -> None:
        """Makes the failures of routes, each with a method, be there at 0: a rate would miss the first of a later series."""
        for route, method in routes:
            for status in _FAULTS:
                self.http_requests.labels(route, method, status)

    def observe_request(self, method: str, route: str, status: int | None, duration_s: float) -> None:
        """Counts a request; status None where the client went away before an answer, counted as `none`.

        A method that clients made up is counted as `other`.
        """
        known = method if method in METHODS else OTHER
        self.http_requests.labels(route, known, "none" if status is None else str(status)).inc()
        self.http_request_seconds.labels(route, known).observe(duration_s)

    def count_failure(self, model: str, code: str) -> None:
        """Counts a job that ended without what it was for, by the stable code of its failure."""
        self.job_failures.labels(model, code if code in FAILURE_REASONS else OTHER).inc()


GROUPS: tuple[type, ...] = Metrics.__bases__
