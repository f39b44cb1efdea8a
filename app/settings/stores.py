"""Where state lives: Redis, the object store, the data directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, field_validator, model_validator

_REDIS_SCHEMES = ("redis://", "rediss://", "unix://", "redis+sentinel://", "rediss+sentinel://")


class Stores(BaseModel):
    """Where state lives."""

    READ_BY: ClassVar[Mapping[str, str]] = {
        "": "API, workers",
        "data_dir": "serve, API, workers, commands",
        "redis_url": "serve, API, workers, commands",
        "redis_timeout_s": "serve, API, workers, commands",
        "redis_replicas": "API, commands",
        "redis_replicas_timeout_s": "API, commands",
    }

    data_dir: Path = Field(
        Path("data"), description="Folder of the embedded Redis and of images and files kept locally."
    )
    redis_url: str | None = Field(
        None,
        description="redis://, rediss:// or unix:// URL of a shared Redis 6.2 or newer, or redis+sentinel:// of its"
        " sentinels. None: `serve` embeds one. See docs/sentinel.md.",
    )
    redis_timeout_s: float = Field(10.0, gt=0, le=120, description="How long one Redis command may take.")
    redis_replicas: int = Field(
        0,
        ge=0,
        le=10,
        description="Replicas of a shared Redis that must have what is acknowledged, else the answer is 503"
        " `not_replicated`. See docs/replicas.md.",
    )
    redis_replicas_timeout_s: float = Field(
        1.0, gt=0, le=60, description="How long they are waited for; less than redis_timeout_s."
    )
    image_url: str | None = Field(
        None,
        description="Object store of images and files, this service's alone: file:///path, s3://bucket/prefix, …"
        " None: `images` and `files` in data_dir.",
    )

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(_REDIS_SCHEMES):
            raise ValueError(f"give a URL that begins with {', '.join(_REDIS_SCHEMES)}")
        return value

    @field_validator("image_url")
    @classmethod
    def _check_image_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if not parts.scheme or not (parts.netloc or parts.path.strip("/")):
            raise ValueError(
                "give a URL with its scheme, such as file:///var/lib/sparke or s3://bucket/prefix"
            )
        if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
            raise ValueError("a folder's URL has three slashes: file:///var/lib/sparke")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.redis_replicas and self.redis_url is None:
            raise ValueError("redis_replicas is for a shared Redis: give redis_url, or leave it 0")
        if self.redis_replicas and self.redis_replicas_timeout_s >= self.redis_timeout_s:
            raise ValueError(
                "redis_replicas_timeout_s must be less than redis_timeout_s, after which no answer of Redis is read;"
                f" got {self.redis_replicas_timeout_s} and {self.redis_timeout_s}"
            )
        return self

    @property
    def image_store_url(self) -> str:
        """Where images lie: `image_url`, or the folder `images` of the data directory."""
        return self.image_url or (self.data_dir.absolute() / "images").as_uri()

    @property
    def file_store_url(self) -> str:
        """Where files lie: `image_url`, or the folder `files` of the data directory."""
        return self.image_url or (self.data_dir.absolute() / "files").as_uri()
