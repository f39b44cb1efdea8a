"""How many requests a tenant may send in a minute: one bucket of tokens for all replicas."""

import math
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis

from app.domain.ids import TenantId
from app.domain.quota import Remaining
from app.errors import RateLimited
from app.redis.errors import redis_errors
from app.redis.scripts import load_script
from app.tenants.names import rate_key


class RateLimiter:
    """Buckets of all tenants. A bucket that is not asked for a minute is full, and costs nothing."""

    def __init__(self, redis: Redis, *, clock_ms: Callable[[], int]) -> None:
        self._clock_ms = clock_ms
        self._take = load_script(redis, "app.tenants", "take_token")

    @redis_errors
    async def take(self, tenant_id: TenantId, per_minute: int) -> Remaining:
        """Takes a token. Raises RateLimited where there is none, which takes nothing, and StoreUnavailable.

        Cost: one script that writes one key. Clocks of replicas that differ by less than a minute do little harm: the
        bucket never holds more than a minute's tokens.
        """
        is_taken, num_left, wait_ms, full_ms = await self._ask(tenant_id, per_minute)
        full_in_s = math.ceil(full_ms / 1000)
        if not is_taken:
            wait_s = max(1, math.ceil(wait_ms / 1000))
            raise RateLimited(
                f"you send more than {per_minute} requests a minute; try again in {wait_s} s",
                retry_after_s=wait_s,
                limit=per_minute,
                reset_after_s=max(1, full_in_s),
            )
        return Remaining(per_minute, num_left, full_in_s)

    async def _ask(self, tenant_id: TenantId, per_minute: int) -> tuple[int, int, int, int]:
        found: Any = await self._take([rate_key(tenant_id)], [per_minute, self._clock_ms()])
        is_taken, num_left, wait_ms, full_ms = (int(value) for value in found)
        return is_taken, num_left, wait_ms, full_ms
