"""Every setting of the service, read once in a main from `SPARKE_*` and then passed on as values.

Nothing else in the service reads the environment. A wrong value stops the process with a `ConfigurationError` that
names the variable, what is expected and what was found.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.domain.file import MAX_FILE_TTL_S, MIN_FILE_TTL_S
from app.domain.ids import ModelId, parse_model_id
from app.domain.quota import Quotas
from app.errors import ConfigurationError, InvalidId

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]
_COMMANDS_VARIABLES = {"SPARKE_API_KEY"}  # of `sparke batch` and the like, which are clients


class Settings(BaseSettings):
    """The service's settings. Frozen; `load_settings` is how a main gets them."""

    model_config = SettingsConfigDict(
        env_prefix="SPARKE_", frozen=True, extra="forbid", validate_default=True
    )

    # Where state lives
    data_dir: Path = Field(
        Path("data"), description="Folder of the embedded Redis and of images and files kept locally."
    )
    redis_url: str | None = Field(
        None,
        description="redis://, rediss:// or unix:// URL of a shared Redis 6.2 or newer. None: `serve` embeds one.",
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

    # HTTP
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
    url_signing_key: SecretStr | None = Field(
        None,
        description="Secret of image URLs, 32 characters or more. None: made once and shared through Redis.",
    )
    image_url_ttl_s: int = Field(
        3600, ge=1, le=604_800, description="How long a signed image URL stays valid."
    )
    upload_timeout_s: float = Field(
        1800.0,
        gt=0,
        le=3000,
        description="How long sending a file or an archive may take; a pause in it, at most a minute.",
    )

    # Models and workers
    models_file: Path | None = Field(None, description="Catalogue of models. None: the packaged demo model.")
    models: Annotated[tuple[ModelId, ...], NoDecode] = Field(
        (), description="Models this worker serves, separated by commas. Empty: all of the catalogue."
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, mps, cuda or cuda:N."
    )
    max_batch_images: int = Field(
        16,
        ge=1,
        le=256,
        description="Most images in one device batch; a worker that runs out of memory learns to take fewer.",
    )
    batch_window_ms: int = Field(20, ge=0, le=1000, description="How long the batcher waits for company.")
    memory_cache_bytes: int = Field(
        2 * 2**30, ge=1, description="Host memory of a worker for its copies of tenants' memories."
    )
    memory_snapshots_dir: Path | None = Field(
        None,
        description="Folder for a worker's encrypted snapshots of large memories, to start from. None: none are kept,"
        " but by `sparke serve` in `snapshots` of data_dir.",
    )
    memory_snapshots_bytes: int = Field(
        8 * 2**30, ge=0, description="Most bytes of snapshots; those used least recently go. 0 keeps none."
    )
    memory_snapshots_interval_s: float = Field(
        600.0, ge=1, le=86_400, description="How often a worker looks which snapshots to write."
    )
    torch_threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads of a worker's torch. None: torch's own choice."
    )
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
        None, ge=0, le=65535, description="Port of a worker's own /metrics. None: not served."
    )

    # Bounds
    max_waiting_jobs_per_tenant: int = Field(
        1000, ge=1, description="Jobs of one tenant that may wait for one model."
    )
    max_open_jobs: int = Field(10_000, ge=1, description="Unfinished jobs of all tenants for one model.")
    max_released_jobs_per_tenant: int = Field(
        8,
        ge=1,
        le=1000,
        description="Jobs of one tenant that may stand in a model's stream or run at a time.",
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
    max_file_bytes: int = Field(209_715_200, ge=1, description="Largest file that is taken.")
    max_picture_bytes: int = Field(
        52_428_800, ge=1, description="Largest image, and largest mask, that is taken to be edited."
    )
    max_picture_pixels: int = Field(
        25_000_000,
        ge=1,
        le=80_000_000,
        description="Most pixels of such an image; the API holds up to 12 bytes for each while it decodes one, two at a time.",
    )
    max_files_per_tenant: int = Field(
        1000, ge=1, le=10_000, description="Files that one tenant may keep at a time."
    )
    max_uploads_per_tenant: int = Field(
        8, ge=1, le=1000, description="Files that one tenant may be sending to one API process at a time."
    )
    max_import_bytes: int = Field(
        2 * 2**30,
        ge=1,
        description="Largest archive of a memory that is taken; Redis has to hold its entries.",
    )
    import_ttl_s: int = Field(
        3600,
        ge=60,
        le=604_800,
        description="How long an import that broke off waits to be gone on with, and how long one that ended can be read.",
    )
    max_imports_per_tenant: int = Field(
        4, ge=1, le=1000, description="Imports of one tenant that may be unfinished."
    )
    max_memories_per_tenant: int = Field(
        1000, ge=1, le=100_000, description="Memories that one tenant may have at a time."
    )
    max_transfers_per_tenant: int = Field(
        4,
        ge=1,
        le=1000,
        description="Exports, imports and forks of memories that one tenant may have under way at one API process.",
    )
    max_followers_per_tenant: int = Field(
        100,
        ge=1,
        le=10_000,
        description="Streams of jobs' events that one tenant may follow at one API process at a time.",
    )
    file_ttl_s: int = Field(
        MAX_FILE_TTL_S,
        ge=MIN_FILE_TTL_S,
        le=MAX_FILE_TTL_S,
        description="How long a file is kept whose upload does not say.",
    )
    max_batch_lines: int = Field(50_000, ge=1, le=50_000, description="Most lines of one batch.")
    max_batch_lines_open: int = Field(
        64,
        ge=1,
        le=1000,
        description="Lines of one batch that are jobs at a time; the others wait in its file.",
    )
    max_open_batches_per_tenant: int = Field(
        20, ge=1, le=1000, description="Batches of one tenant that may be unfinished."
    )
    max_batches_driven: int = Field(
        16, ge=1, le=1000, description="Batches that one API process drives at a time; more take turns."
    )
    image_ttl_s: int = Field(30 * 86_400, ge=60, description="How long an image is kept.")

    # Quotas of each tenant; an administrator may set others for one
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

    # The audit log
    max_audit_records: int = Field(
        50_000,
        ge=100,
        le=1_000_000,
        description="Most records of each of the three journals of the audit log.",
    )
    audit_ttl_s: int = Field(400 * 86_400, ge=86_400, description="How long a record of it is kept at most.")

    # Webhooks
    webhooks_allow_private: bool = Field(
        False,
        description="Whether webhooks may go to private addresses, this machine's among them, and over plain http.",
    )

    # Logs
    log_format: LogFormat = Field("auto", description="json, console, or auto: console on a terminal.")
    log_level: LogLevel = Field("info", description="debug, info, warning or error.")

    @field_validator("models", mode="before")
    @classmethod
    def _split_models(cls, value: object) -> object:
        if isinstance(value, str):
            value = tuple(part.strip() for part in value.split(",") if part.strip())
        if not isinstance(value, tuple | list):
            return value
        try:
            return tuple(parse_model_id(str(part)) for part in value)
        except InvalidId as error:
            raise ValueError(error.message) from error

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("give a URL that begins with redis://, rediss:// or unix://")
        return value

    @field_validator("image_url", "public_url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is not None and "://" not in value:
            raise ValueError(
                "give a URL with its scheme, such as file:///var/lib/sparke or https://images.example.org"
            )
        return None if value is None else value.rstrip("/")

    @field_validator("url_signing_key")
    @classmethod
    def _check_signing_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 32:
            raise ValueError("give 32 characters or more, such as the output of `openssl rand -base64 32`")
        return value

    @model_validator(mode="after")
    def _check_heartbeat(self) -> "Settings":
        if self.heartbeat_ttl_s < 3 * self.heartbeat_interval_s:
            raise ValueError(
                f"heartbeat_ttl_s must be at least three times heartbeat_interval_s, so that one late beat kills"
                f" nobody; got {self.heartbeat_ttl_s} and {self.heartbeat_interval_s}"
            )
        return self

    @model_validator(mode="after")
    def _check_replicas(self) -> "Settings":
        if self.redis_replicas and self.redis_url is None:
            raise ValueError("redis_replicas is for a shared Redis: give redis_url, or leave it 0")
        if self.redis_replicas and self.redis_replicas_timeout_s >= self.redis_timeout_s:
            raise ValueError(
                "redis_replicas_timeout_s must be less than redis_timeout_s, after which no answer of Redis is read;"
                f" got {self.redis_replicas_timeout_s} and {self.redis_timeout_s}"
            )
        return self

    @model_validator(mode="after")
    def _check_lifetimes(self) -> "Settings":
        if self.image_url_ttl_s > min(self.job_ttl_s, self.image_ttl_s):
            raise ValueError(
                "image_url_ttl_s must be at most job_ttl_s and image_ttl_s, for a URL shows nothing once one of them"
                f" is over; got {self.image_url_ttl_s}, {self.job_ttl_s} and {self.image_ttl_s}"
            )
        return self

    @property
    def kept_usage_s(self) -> int:
        """How long usage is kept: the bytes of images are counted by their days, for as long as images are."""
        return max(self.usage_ttl_s, self.image_ttl_s + 2 * 86_400)

    @property
    def quotas(self) -> Quotas:
        """What a tenant may use for which nothing else is set."""
        return Quotas(
            requests_per_minute=self.requests_per_minute,
            images_per_day=self.images_per_day,
            max_waiting_jobs=self.max_waiting_jobs_per_tenant,
            max_memory_entries=self.max_memory_entries,
            max_stored_bytes=self.max_stored_bytes,
        )

    @property
    def image_store_url(self) -> str:
        """Where images lie: `image_url`, or the folder `images` of the data directory."""
        return self.image_url or (self.data_dir.absolute() / "images").as_uri()

    @property
    def file_store_url(self) -> str:
        """Where files lie: `image_url`, or the folder `files` of the data directory."""
        return self.image_url or (self.data_dir.absolute() / "files").as_uri()


def load_settings(**overrides: object) -> Settings:
    """The settings of this process: `overrides` (None leaves a setting alone), then the environment, then defaults.

    Raises ConfigurationError with one line for each setting that is wrong.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]  # pydantic checks the values, and this is the place
    except ValidationError as error:
        raise ConfigurationError("\n".join(_explain(error))) from error


def unknown_variables() -> tuple[str, ...]:
    """The variables SPARKE_* of this process that are no setting, so that nothing heeds them."""
    known = {f"SPARKE_{name.upper()}" for name in Settings.model_fields} | _COMMANDS_VARIABLES
    return tuple(
        sorted(
            name for name in os.environ if name.upper().startswith("SPARKE_") and name.upper() not in known
        )
    )


def let_threads_sleep() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says otherwise. Call it before torch loads.

    By default they spin. Where anything else wants the cores, each then waits for another that is not running: an
    image of the demo model took four to ten times as long on two busy cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _explain(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False):
        name = ".".join(str(part) for part in problem["loc"])
        where = f"SPARKE_{name.upper()}" if name else "the settings together"
        found = "" if not name or "key" in name else f" (got {problem['input']!r})"
        lines.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}{found}")
    return lines
