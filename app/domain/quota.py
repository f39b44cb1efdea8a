"""What a tenant may use, and what it has used."""

from dataclasses import dataclass, fields, replace
from typing import Protocol

from app.domain.ids import TenantId

DAY_MS = 86_400_000
MAX_QUOTA = 2**53 - 1
MAX_REQUESTS_PER_MINUTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Quotas:
    """What one tenant may use; None is without a bound. Waiting jobs are counted for each model."""

    requests_per_minute: int | None = None
    images_per_day: int | None = None
    max_waiting_jobs: int = 1000
    max_memory_entries: int | None = None
    max_stored_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class QuotaOverrides:
    """What is set for one tenant; None is the service's default. A very large number lifts a bound."""

    requests_per_minute: int | None = None
    images_per_day: int | None = None
    max_waiting_jobs: int | None = None
    max_memory_entries: int | None = None
    max_stored_bytes: int | None = None

    def over(self, defaults: Quotas) -> Quotas:
        """The defaults with these in their place."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(defaults, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, slots=True)
class DayUsage:
    """What a tenant used on one day of UTC, counted in days since 1970.

    `num_images` are those of accepted jobs, less those of jobs that ended without any.
    """

    day: int
    num_requests: int = 0
    num_jobs: int = 0
    num_images: int = 0


@dataclass(frozen=True, slots=True)
class Remaining:
    """A bound, what is left of it, and when all of it is there again."""

    limit: int
    num_left: int
    full_in_s: int


class QuotaSource(Protocol):
    """Who knows what a tenant may use."""

    async def of(self, tenant_id: TenantId) -> Quotas:
        """The tenant's quotas now, or as they were a few seconds ago."""
        ...


@dataclass(frozen=True, slots=True)
class SameForAll:
    """The same quotas for every tenant."""

    quotas: Quotas

    async def of(self, tenant_id: TenantId) -> Quotas:  # noqa: ARG002 - whoever it is
        """The quotas."""
        return self.quotas


def day_of(at_ms: int) -> int:
    """The day of UTC that a time in Unix milliseconds is on, counted from 1970."""
    return at_ms // DAY_MS


def next_day_s(at_ms: int) -> int:
    """Whole seconds until the next day of UTC begins, at least 1."""
    return max(1, -(-(DAY_MS - at_ms % DAY_MS) // 1000))
