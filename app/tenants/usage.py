"""What tenants have used, by day. Images are charged by the scripts of `app.jobs`, in the step that accepts a job."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis

from app.domain.ids import TenantId
from app.domain.quota import DAY_MS, DayUsage, day_of
from app.redis.errors import redis_errors
from app.redis.scripts import load_script
from app.tenants.names import usage_key


class UsageStore:
    """The counters of all tenants. All methods raise StoreUnavailable where Redis does not answer."""

    def __init__(self, redis: Redis, *, ttl_s: int, image_ttl_s: int, clock_ms: Callable[[], int]) -> None:
        self._redis = redis
        self._image_ttl_s = image_ttl_s
        self._ttl_ms = 1000 * ttl_s
        self._clock_ms = clock_ms
        self._count = load_script(redis, "app.tenants", "count")

    @redis_errors
    async def add_requests(self, tenant_id: TenantId, num_requests: int) -> None:
        """Counts some requests of today."""
        today = day_of(self._clock_ms())
        first_day = today - self._ttl_ms // DAY_MS
        await self._count([usage_key(tenant_id)], [today, num_requests, first_day, self._ttl_ms])

    @redis_errors
    async def read_days(self, tenant_id: TenantId, num_days: int) -> list[DayUsage]:
        """The last days on which anything was used, the latest first, today's among them."""
        first_day = day_of(self._clock_ms()) - num_days + 1
        found = await self._read(tenant_id)
        days = sorted({day for day, _ in found if day >= first_day}, reverse=True)
        return [
            DayUsage(day, *(max(0, found[day, what]) for what in ("requests", "jobs", "images")))
            for day in days
        ]

    @redis_errors
    async def image_bytes(self, tenant_id: TenantId) -> int:
        """Bytes of the images that are kept: all of the days whose last image is not past its time to live."""
        first_day = day_of(self._clock_ms() - 1000 * self._image_ttl_s)
        found = await self._read(tenant_id)
        return sum(
            number for (day, what), number in found.items() if what == "image_bytes" and day >= first_day
        )

    async def _read(self, tenant_id: TenantId) -> Counter[tuple[int, str]]:
        """Every number, by day and name. Cost: some fields for each day that is kept."""
        found: Any = await self._redis.hgetall(usage_key(tenant_id))
        numbers: Counter[tuple[int, str]] = Counter()
        for field, number in found.items():
            day, _, what = field.decode().partition(":")
            numbers[int(day), what] = int(number)
        return numbers


class UsageMeter:
    """Requests since the last `flush`, so that none of them costs a write of its own. What a kill takes is not counted."""

    def __init__(self, usage: UsageStore) -> None:
        self._usage = usage
        self._counted: Counter[TenantId] = Counter()

    def count(self, tenant_id: TenantId) -> None:
        """Counts a request."""
        self._counted[tenant_id] += 1

    async def flush(self) -> None:
        """Writes down what was counted. Raises StoreUnavailable; what was not written is counted on."""
        for tenant_id in list(self._counted):
            num_requests = self._counted[tenant_id]
            await self._usage.add_requests(tenant_id, num_requests)
            self._counted[tenant_id] -= num_requests
            self._counted += Counter()  # forgets tenants that have none
