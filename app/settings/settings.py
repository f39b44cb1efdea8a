"""All settings as one frozen value, made of one class a theme, and the rules that hold between themes."""

from typing import Self

from pydantic import model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.domain.quota import Quotas
from app.settings.audit import Audit
from app.settings.batches import Batches
from app.settings.files import Files
from app.settings.http import Http
from app.settings.jobs import Jobs
from app.settings.memories import Memories
from app.settings.models import Models
from app.settings.quotas import TenantQuotas
from app.settings.stores import Stores
from app.settings.telemetry import Telemetry
from app.settings.webhooks import Webhooks
from app.settings.workers import Workers


class Settings(  # in the order of docs/configuration.md
    Stores,
    Http,
    Models,
    Workers,
    Jobs,
    Memories,
    Files,
    Batches,
    TenantQuotas,
    Audit,
    Webhooks,
    Telemetry,
    BaseSettings,
):
    """The service's settings. Frozen; `load_settings` is how a main gets them."""

    model_config = SettingsConfigDict(
        env_prefix="SPARKE_", env_ignore_empty=True, frozen=True, extra="forbid", validate_default=True
    )

    @model_validator(mode="after")
    def _check_lifetimes(self) -> Self:
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
