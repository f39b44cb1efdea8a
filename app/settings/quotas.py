"""What each tenant may use, unless an administrator set something else for it."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, Field


class TenantQuotas(BaseModel):
    """Quotas of each tenant; an administrator may set others for one."""

    READ_BY: ClassVar[Mapping[str, str]] = {"": "API", "usage_ttl_s": "API, workers"}

    requests_per_minute: int | None = Field(
        None, ge=1, le=1_000_000, description="Requests that a tenant may send in a minute. None: any number."
    )
    images_per_day: int | None = Field(
        None, ge=0, description="Images that a tenant may ask for on a day of UTC. None: any number."
    )
    max_memory_entries: int | None = Field(
        None, ge=0, description="Entries in all memories of a tenant. None: any number."
    )
    max_stored_bytes: int | None = Field(
        None, ge=0, description="Bytes of a tenant's files and images. None: any number."
    )
    usage_ttl_s: int = Field(
        62 * 86_400,
        ge=86_400,
        description="How long is known what a tenant used on a day; at least two days longer than image_ttl_s.",
    )
