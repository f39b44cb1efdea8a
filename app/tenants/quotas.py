"""What each tenant may use: the service's defaults, and what was set for one tenant in their place."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter
from redis.asyncio import Redis

from app.domain.ids import TenantId
from app.domain.quota import MAX_QUOTA, MAX_REQUESTS_PER_MINUTE, QuotaOverrides, Quotas
from app.errors import InvalidValue
from app.redis.errors import redis_errors
from app.redis.records import decode
from app.tenants.names import quotas_key

FRESH_S = 5.0  # so long a process goes by what it read
_MOST_KEPT = 10_000

_OVERRIDES = TypeAdapter(QuotaOverrides)


class QuotaBook:
    """Quotas of all tenants, as one process sees them: what is set anew holds everywhere within FRESH_S.

    All methods raise StoreUnavailable where Redis does not answer.
    """

    def __init__(
        self, redis: Redis, defaults: Quotas, *, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.defaults = defaults
        self._redis = redis
        self._monotonic_s = monotonic_s
        self._kept: OrderedDict[TenantId, tuple[float, Quotas]] = OrderedDict()

    async def of(self, tenant_id: TenantId) -> Quotas:
        """The tenant's quotas. Cost: a read every FRESH_S."""
        kept = self._kept.get(tenant_id)
        if kept is not None and self._monotonic_s() < kept[0]:
            return kept[1]
        quotas = (await self.overrides(tenant_id)).over(self.defaults)
        self._kept[tenant_id] = (self._monotonic_s() + FRESH_S, quotas)
        self._kept.move_to_end(tenant_id)
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return quotas

    @redis_errors
    async def overrides(self, tenant_id: TenantId) -> QuotaOverrides:
        """What is set for the tenant now. Raises CorruptRecord."""
        data: Any = await self._redis.get(quotas_key(tenant_id))
        if data is None:
            return QuotaOverrides()
        return decode(_OVERRIDES, data, where=f"quotas of tenant {tenant_id}")

    @redis_errors
    async def set(self, tenant_id: TenantId, overrides: QuotaOverrides) -> None:
        """Sets the tenant's quotas, in place of all that was set before. Raises InvalidValue."""
        check_overrides(overrides)
        if overrides == QuotaOverrides():
            await self._redis.delete(quotas_key(tenant_id))
        else:
            await self._redis.set(quotas_key(tenant_id), _OVERRIDES.dump_json(overrides))
        self._kept.pop(tenant_id, None)


def check_overrides(overrides: QuotaOverrides) -> None:
    """Raises InvalidValue unless every number is one that a quota can have."""
    for name in QuotaOverrides.__slots__:
        value = getattr(overrides, name)
        most = MAX_REQUESTS_PER_MINUTE if name == "requests_per_minute" else MAX_QUOTA
        least = 1 if name in ("requests_per_minute", "max_waiting_jobs") else 0
        if value is not None and not least <= value <= most:
            raise InvalidValue(f"{name} is {least} to {most}, got {value}", param=name)
