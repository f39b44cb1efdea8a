"""The HTTP interface: addresses, times, the URLs of images."""

from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, SecretStr, field_validator


class Http(BaseModel):
    """HTTP."""

    READ_BY: ClassVar[Mapping[str, str]] = {
        "": "API",
        "host": "serve, API",
        "port": "serve, API",
        "stop_timeout_s": "serve, API",
    }

    host: str = Field("127.0.0.1", min_length=1, description="Address the API listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port the API listens on; 0 takes a free one.")
    public_url: str | None = Field(
        None,
        description="How clients reach the API (https://images.example.org), for image URLs behind a proxy.",
    )
    request_timeout_s: float = Field(
        300.0, gt=0, le=3600, description="How long a request waits for its images; the job's deadline too."
    )
    max_body_bytes: int = Field(4_194_304, ge=10_000, description="Largest request body that is read.")
    head_timeout_s: float = Field(
        30.0, gt=0, le=300, description="How long the head of a request may take to come."
    )
    body_timeout_s: float = Field(60.0, gt=0, le=600, description="How long a body of JSON may take to come.")
    upload_timeout_s: float = Field(
        1800.0,
        gt=0,
        le=3000,
        description="How long sending a file or an archive may take; a pause in it, at most a minute.",
    )
    stop_notice_s: float = Field(
        0.0,
        ge=0,
        le=600,
        description="How long a stopping API still takes requests, while `/readyz` says 503 `stopping` and each answer closes"
        " its connection, so that whatever sends requests turns to others. See docs/service.md.",
    )
    stop_timeout_s: float = Field(
        20.0, gt=0, le=3600, description="How long a stopping API then finishes what it is answering."
    )
    url_signing_key: SecretStr | None = Field(
        None,
        description="Secret of image URLs, 32 characters or more. None: made once and shared through Redis.",
    )
    image_url_ttl_s: int = Field(
        3600, ge=1, le=604_800, description="How long a signed image URL stays valid."
    )

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts, how = urlsplit(value), "give what clients see before /v1, such as https://images.example.org"
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{how}, with its scheme")
        if parts.query or parts.fragment or parts.username is not None:
            raise ValueError(f"{how}, without a query, a fragment or a user")
        if parts.path.rstrip("/").endswith("/v1"):
            raise ValueError(f"{how}: /v1 is added to it")
        return value.rstrip("/")

    @field_validator("url_signing_key")
    @classmethod
    def _check_signing_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 32:
            raise ValueError("give 32 characters or more, such as the output of `openssl rand -base64 32`")
        return value
