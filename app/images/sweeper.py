"""Removes images past their time to live, those of jobs that never committed among them."""

from collections.abc import Callable

from redis.asyncio import Redis

from app.images.store import ImageStore
from app.redis.turns import take_turn

MAX_INTERVAL_S = 3600.0


class ImageSweeper:
    """Looks through the whole store, by its own times of writing. Workers call `sweep` on a timer; one of them works."""

    KEY = "sparke:image-sweep"  # held by whoever sweeps now; lives one interval

    def __init__(
        self, redis: Redis, images: ImageStore, *, image_ttl_s: float, clock_ms: Callable[[], int]
    ) -> None:
        self._redis = redis
        self._images = images
        self._image_ttl_s = image_ttl_s
        self._clock_ms = clock_ms

    @property
    def interval_s(self) -> float:
        """An hour, or a tenth of a shorter time to live: an image outlives its time by no more than that."""
        return min(MAX_INTERVAL_S, self._image_ttl_s / 10)

    async def sweep(self) -> int:
        """The number of images removed; 0 where a worker swept within the interval. Raises StoreUnavailable.

        Cost: one listing of the store, which on S3 is one call for each 1,000 images.
        """
        if not await take_turn(self._redis, self.KEY, interval_s=self.interval_s):
            return 0
        return await self._images.delete_before(self._clock_ms() / 1000 - self._image_ttl_s)
