"""Bounds of the queue, and how long jobs are kept."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, Field


class Jobs(BaseModel):
    """Jobs."""

    READ_BY: ClassVar[Mapping[str, str]] = {
        "": "API",
        "max_released_jobs_per_tenant": "workers",
        "job_ttl_s": "API, workers",
        "max_open_jobs": "API",
    }

    max_waiting_jobs_per_tenant: int = Field(
        1000, ge=1, description="Jobs of one tenant that may wait for one model."
    )
    max_open_jobs: int = Field(10_000, ge=1, description="Unfinished jobs of all tenants for one model.")
    max_released_jobs_per_tenant: int | None = Field(
        None,
        ge=1,
        description="Jobs of one tenant that all workers together may have of a model at a time. None: any number.",
    )
    no_worker_grace_s: float = Field(
        10.0, ge=0, description="How long a request waits for a worker to appear that serves its model."
    )
    job_ttl_s: int = Field(7 * 86_400, ge=60, description="How long a finished job can be read.")
    idempotency_ttl_s: int = Field(
        86_400,
        ge=60,
        description="How long an Idempotency-Key stands for its first request; at most job_ttl_s.",
    )
    max_followers_per_tenant: int = Field(
        100,
        ge=1,
        le=10_000,
        description="Streams of jobs' events that one tenant may follow at one API process at a time.",
    )
