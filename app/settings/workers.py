"""How workers live and stop, and find what the dead have left."""

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import BaseModel, Field, model_validator


class Workers(BaseModel):
    """Workers."""

    READ_BY: ClassVar[Mapping[str, str]] = {
        "": "workers",
        "heartbeat_ttl_s": "API, workers",
        "drain_timeout_s": "serve, workers",
        "max_attempts": "API, workers",
    }

    drain_timeout_s: float = Field(60.0, gt=0, description="How long a stopping worker may finish its batch.")
    heartbeat_interval_s: float = Field(
        2.5, gt=0, le=60, description="How often a worker says that it lives."
    )
    heartbeat_ttl_s: float = Field(
        15.0,
        gt=0,
        le=600,
        description="Silence after which a worker counts as dead, and its jobs are given to others.",
    )
    max_attempts: int = Field(
        3, ge=1, le=100, description="How often workers may die of a job before it fails as `poison`."
    )
    sweep_interval_s: float = Field(
        5.0, gt=0, le=600, description="How often workers look for what a crash left."
    )
    worker_metrics_host: str = Field(
        "127.0.0.1", min_length=1, description="Address of a worker's own /metrics."
    )
    worker_metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of a worker's own /livez, /readyz and /metrics; of several workers of `serve` the next has the next. None:"
        " not served, but a worker of `serve` takes a free one.",
    )

    @model_validator(mode="after")
    def _check_heartbeat(self) -> Self:
        if self.heartbeat_ttl_s < 3 * self.heartbeat_interval_s:
            raise ValueError(
                f"heartbeat_ttl_s must be at least three times heartbeat_interval_s, so that one late beat kills"
                f" nobody; got {self.heartbeat_ttl_s} and {self.heartbeat_interval_s}"
            )
        return self
