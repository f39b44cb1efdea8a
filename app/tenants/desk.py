"""What an API process knows of tenants, opened together."""

from collections.abc import Callable
from dataclasses import dataclass

from redis.asyncio import Redis

from app.domain.ids import TenantId
from app.redis.replicas import Replicas
from app.settings import Settings
from app.tenants.quotas import QuotaBook
from app.tenants.rate import RateLimiter
from app.tenants.registry import TenantRegistry
from app.tenants.usage import UsageMeter, UsageStore


@dataclass(frozen=True, slots=True)
class TenantDesk:
    """Which tenants there are, what each may use, and what it has used."""

    registry: TenantRegistry
    quotas: QuotaBook
    rate: RateLimiter
    usage: UsageStore
    meter: UsageMeter

    @classmethod
    def open(
        cls,
        redis: Redis,
        settings: Settings,
        *,
        clock_ms: Callable[[], int],
        replicas: Replicas | None = None,
    ) -> "TenantDesk":
        """The desk over a Redis, with the settings' quotas for everybody for whom none are set."""
        usage = UsageStore(
            redis, ttl_s=settings.kept_usage_s, image_ttl_s=settings.image_ttl_s, clock_ms=clock_ms
        )
        return cls(
            registry=TenantRegistry(redis, clock_ms=clock_ms, replicas=replicas),
            quotas=QuotaBook(redis, settings.quotas),
            rate=RateLimiter(redis, clock_ms=clock_ms),
            usage=usage,
            meter=UsageMeter(usage),
        )

    async def most_file_bytes(self, tenant_id: TenantId) -> int | None:
        """How many bytes a tenant's images leave to its files; None: any number. Raises StoreUnavailable."""
        most = (await self.quotas.of(tenant_id)).max_stored_bytes
        return None if most is None else most - await self.usage.image_bytes(tenant_id)
