"""Bounds of what clients send, and how long it is kept."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, Field

from app.domain.file import MAX_FILE_TTL_S, MIN_FILE_TTL_S


class Files(BaseModel):
    """Files, pictures and images."""

    READ_BY: ClassVar[Mapping[str, str]] = {"": "API", "image_ttl_s": "API, workers"}

    max_file_bytes: int = Field(209_715_200, ge=1, description="Largest file that is taken.")
    max_files_per_tenant: int = Field(
        1000, ge=1, le=10_000, description="Files that one tenant may keep at a time."
    )
    max_uploads_per_tenant: int = Field(
        8, ge=1, le=1000, description="Files that one tenant may be sending to one API process at a time."
    )
    file_ttl_s: int = Field(
        MAX_FILE_TTL_S,
        ge=MIN_FILE_TTL_S,
        le=MAX_FILE_TTL_S,
        description="How long a file is kept whose upload does not say.",
    )
    max_picture_bytes: int = Field(
        52_428_800, ge=1, description="Largest image, and largest mask, that is taken to be edited."
    )
    max_picture_pixels: int = Field(
        25_000_000,
        ge=1,
        le=80_000_000,
        description="Most pixels of such an image; the API holds up to 12 bytes for each while it decodes one, two at a time.",
    )
    image_ttl_s: int = Field(30 * 86_400, ge=60, description="How long an image is kept.")
