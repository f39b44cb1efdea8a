"""The audit log."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, Field


class Audit(BaseModel):
    """The audit log."""

    READ_BY: ClassVar[Mapping[str, str]] = {"": "API, commands"}

    max_audit_records: int = Field(
        50_000,
        ge=100,
        le=1_000_000,
        description="Most records of each of the three journals of the audit log.",
    )
    audit_ttl_s: int = Field(400 * 86_400, ge=86_400, description="How long a record of it is kept at most.")
