"""Bounds of batches of requests."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, Field


class Batches(BaseModel):
    """Batches."""

    READ_BY: ClassVar[Mapping[str, str]] = {"": "API"}

    max_batch_lines: int = Field(50_000, ge=1, le=50_000, description="Most lines of one batch.")
    max_batch_lines_waiting: int = Field(
        64,
        ge=1,
        le=1000,
        description="Lines of one batch that wait as jobs, beside those that workers have; the others wait in its file.",
    )
    max_open_batches_per_tenant: int = Field(
        20, ge=1, le=1000, description="Batches of one tenant that may be unfinished."
    )
    max_batches_driven: int = Field(
        16, ge=1, le=1000, description="Batches that one API process drives at a time; more take turns."
    )
