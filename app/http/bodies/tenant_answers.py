"""Tenants, their keys, quotas and usage on the wire."""

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, Field

from app.domain.ids import TenantId
from app.domain.quota import DAY_MS, DayUsage, QuotaOverrides, Quotas
from app.http.deps import Deps
from app.tenants.keys import KeyRecord, KeyState
from app.tenants.registry import Deletion


class QuotasAnswer(BaseModel):
    """What a tenant may use; null is without a bound."""

    requests_per_minute: int | None
    images_per_day: int | None
    max_waiting_jobs: int
    max_memory_entries: int | None
    max_stored_bytes: int | None


class OverridesAnswer(BaseModel):
    """What is set for one tenant; null is the service's default."""

    requests_per_minute: int | None
    images_per_day: int | None
    max_waiting_jobs: int | None
    max_memory_entries: int | None
    max_stored_bytes: int | None


class DeletionAnswer(BaseModel):
    """How far a deletion is."""

    state: Literal["erasing", "watching"] = Field(
        description="`watching`: nothing was left at the last look, and there will be one more, when nothing that was let in"
        " before can write any more."
    )
    requested_at: int = Field(description="Unix seconds.")
    keys_removed: int = Field(description="Keys and members of sets in Redis, API keys among them.")
    objects_removed: int = Field(description="Images and files.")


class TenantAnswer(BaseModel):
    """A tenant. One that is being deleted has no keys any more, and is not found once that has ended."""

    id: str = Field(description="Its name.")
    object: Literal["tenant"] = "tenant"
    state: Literal["active", "deleting"] = Field(description="`deleting` until nothing of it is left.")
    quotas: QuotasAnswer = Field(description="What holds for it.")
    overrides: OverridesAnswer
    deletion: DeletionAnswer | None = Field(
        default=None, description="How far that is; null where it is not being deleted."
    )


class TenantNameAnswer(BaseModel):
    """A tenant in a list."""

    id: str = Field(description="Its name.")
    object: Literal["tenant"] = "tenant"
    state: Literal["active", "deleting"] = Field(description="`deleting` until nothing of it is left.")


class TenantsAnswer(BaseModel):
    """Tenants in the order of their names."""

    object: Literal["list"] = "list"
    data: list[TenantNameAnswer]
    first_id: str | None
    last_id: str | None = Field(description="What `after` takes for the next ones.")
    has_more: bool


class KeyAnswer(BaseModel):
    """An API key, without its secret. Times are Unix seconds."""

    id: str
    object: Literal["api_key"] = "api_key"
    tenant_id: str
    name: str = Field(description="What it is known by.")
    scopes: list[str] = Field(description="What it may be used for.")
    state: KeyState = Field(description="Whether it works: `active` alone does.")
    created_at: int
    expires_at: int | None = Field(description="When it works no more; null: it works for ever.")
    revoked_at: int | None = Field(description="When it was ended; else null.")
    last_used_at: int | None = Field(description="To about an hour; null: never.")
    successor_id: str | None = Field(description="The key that takes its place.")


class NewKeyAnswer(KeyAnswer):
    """A new API key. `key` is not shown again."""

    key: str = Field(description="The key itself, to be sent as `Authorization: Bearer …`.")


class KeysAnswer(BaseModel):
    """A tenant's keys, oldest first."""

    object: Literal["list"] = "list"
    data: list[KeyAnswer]


class DayAnswer(BaseModel):
    """What was used on one day."""

    date: str = Field(description="The day of UTC, `YYYY-MM-DD`.")
    requests: int = Field(
        description="Requests with a valid key that were let in; a crash may lose some seconds of them."
    )
    jobs: int = Field(description="Jobs that were accepted, lines of batches among them.")
    images: int = Field(description="Images of these jobs, without those of jobs that ended without any.")


class StoredAnswer(BaseModel):
    """Bytes in the object store."""

    files: int = Field(description="Of files that are there.")
    images: int = Field(description="Of the images that are kept, counted by days.")


class UsageAnswer(BaseModel):
    """What a tenant may use and what it has used, the latest day first."""

    object: Literal["usage"] = "usage"
    tenant_id: str
    quotas: QuotasAnswer
    memory_entries: int = Field(description="Entries in all memories now.")
    stored_bytes: StoredAnswer
    data: list[DayAnswer] = Field(description="Days without any use are left out.")


def describe_quotas(quotas: Quotas) -> QuotasAnswer:
    """The quotas, each by its name."""
    return QuotasAnswer(
        requests_per_minute=quotas.requests_per_minute,
        images_per_day=quotas.images_per_day,
        max_waiting_jobs=quotas.max_waiting_jobs,
        max_memory_entries=quotas.max_memory_entries,
        max_stored_bytes=quotas.max_stored_bytes,
    )


def describe_overrides(overrides: QuotaOverrides) -> OverridesAnswer:
    """What is set, each by its name."""
    return OverridesAnswer(
        requests_per_minute=overrides.requests_per_minute,
        images_per_day=overrides.images_per_day,
        max_waiting_jobs=overrides.max_waiting_jobs,
        max_memory_entries=overrides.max_memory_entries,
        max_stored_bytes=overrides.max_stored_bytes,
    )


def describe_key(record: KeyRecord, now_ms: int, *, last_used_at_ms: int | None = None) -> KeyAnswer:
    """The key as `/v1/admin` shows it."""
    return KeyAnswer(
        id=record.key_id,
        tenant_id=record.tenant_id,
        name=record.name,
        scopes=[scope.value for scope in record.scopes],
        state=record.state(now_ms),
        created_at=record.created_at_ms // 1000,
        expires_at=_seconds(record.expires_at_ms),
        revoked_at=_seconds(record.revoked_at_ms),
        last_used_at=_seconds(last_used_at_ms),
        successor_id=record.successor_id,
    )


async def describe_tenant(tenant_id: TenantId, deps: Deps) -> TenantAnswer:
    """A tenant with its quotas as they are set now. Raises StoreUnavailable."""
    overrides = await deps.desk.quotas.overrides(tenant_id)
    deletion = await deps.desk.registry.deletion(tenant_id)
    return TenantAnswer(
        id=tenant_id,
        state="active" if deletion is None else "deleting",
        quotas=describe_quotas(overrides.over(deps.desk.quotas.defaults)),
        overrides=describe_overrides(overrides),
        deletion=None if deletion is None else _describe_deletion(deletion),
    )


async def read_usage(tenant_id: TenantId, num_days: int, deps: Deps) -> UsageAnswer:
    """What a tenant uses. Raises StoreUnavailable."""
    days = await deps.desk.usage.read_days(tenant_id, num_days)
    return UsageAnswer(
        tenant_id=tenant_id,
        quotas=describe_quotas(await deps.desk.quotas.of(tenant_id)),
        memory_entries=await deps.memories.overview.count_entries(tenant_id),
        stored_bytes=StoredAnswer(
            files=await deps.files.stored_bytes(tenant_id),
            images=await deps.desk.usage.image_bytes(tenant_id),
        ),
        data=[_describe_day(day) for day in days],
    )


def _describe_day(used: DayUsage) -> DayAnswer:
    return DayAnswer(
        date=datetime.fromtimestamp(used.day * DAY_MS / 1000, UTC).strftime("%Y-%m-%d"),
        requests=used.num_requests,
        jobs=used.num_jobs,
        images=used.num_images,
    )


def _describe_deletion(deletion: Deletion) -> DeletionAnswer:
    return DeletionAnswer(
        state="watching" if deletion.is_empty else "erasing",
        requested_at=deletion.requested_at_ms // 1000,
        keys_removed=deletion.num_keys,
        objects_removed=deletion.num_objects,
    )


def _seconds(at_ms: int | None) -> int | None:
    return None if at_ms is None else at_ms // 1000
