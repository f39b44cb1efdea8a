"""Removes images that no job ended with: of a worker that died before it committed, or that had lost its job.

And the pictures of edits whose job has ended, is no more, or never was.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog
from redis.asyncio import Redis

from app.domain.ids import JobId, TenantId
from app.domain.job import JobState
from app.errors import CorruptRecord
from app.images.store import ImageStore, parse_image_key, parse_picture_key
from app.jobs import codec, keys
from app.redis.errors import redis_errors
from app.redis.turns import take_turn

_Owner = tuple[TenantId, JobId]


class OrphanSweeper:
    """Images that an ended job's record does not name go, and pictures that no job can begin with any more.

    A record that has ended says for good which images are the job's. Those of a job that waits or runs are not judged
    yet. Nor are those whose record is gone or cannot be read: nobody can tell any more whether the job ended with them,
    so they live as long as every image, `image_ttl_s`, although no URL shows them. So a sweep beside an empty or foreign
    Redis takes no image. A picture is there before its job is accepted, so the grace is what keeps it meanwhile; later,
    without a record, no job can need it, nor can one that has ended.
    """

    KEY = "sparke:orphan-sweep"  # held by whoever sweeps now; lives one interval
    INTERVAL_S = 3600.0

    def __init__(
        self, redis: Redis, images: ImageStore, *, clock_ms: Callable[[], int], grace_s: float = 3600.0
    ) -> None:
        self._redis = redis
        self._images = images
        self._clock_ms = clock_ms
        self._grace_s = grace_s

    async def sweep(self) -> int:
        """The number of images removed; 0 where a worker swept within the interval. Raises StoreUnavailable.

        Parts of images whose writer was killed are among them. Cost: one listing of the store, which on S3 is one call
        for each 1,000 images, and one pipeline for each 100 of them.
        """
        if not await take_turn(self._redis, self.KEY, interval_s=self.INTERVAL_S):
            return 0
        before_s = self._clock_ms() / 1000 - self._grace_s
        num_removed = await self._images.delete_partial_before(before_s)
        async for found in self._images.list_before(before_s):
            orphans = await self._orphans(found)
            await asyncio.gather(*(self._images.delete(key) for key in orphans))
            num_removed += len(orphans)
        if num_removed:
            structlog.get_logger().info("orphans_removed", num_images=num_removed)
        return num_removed

    async def _orphans(self, found: Sequence[str]) -> list[str]:
        owners = {key: owner for key in found if (owner := parse_image_key(key)) is not None}
        named = await self._read_named(set(owners.values()))
        orphans = [key for key, owner in owners.items() if owner in named and key not in named[owner]]
        return orphans + await self._pictures_of_nobody(found)

    @redis_errors
    async def _pictures_of_nobody(self, found: Sequence[str]) -> list[str]:
        pictures = [(key, owner) for key in found if (owner := parse_picture_key(key)) is not None]
        pipeline = self._redis.pipeline(transaction=False)
        for _, owner in pictures:
            pipeline.hget(keys.job_key(*owner), "state")
        states: Any = await pipeline.execute() if pictures else []
        return [key for (key, _), state in zip(pictures, states, strict=True) if _is_over(state)]

    @redis_errors
    async def _read_named(self, owners: Iterable[_Owner]) -> dict[_Owner, frozenset[str]]:
        """The images that each job has ended with; a job of which that cannot be said is left out."""
        asked = list(owners)
        pipeline = self._redis.pipeline(transaction=False)
        for owner in asked:
            pipeline.hmget(keys.job_key(*owner), "state", "result")
        records: Any = await pipeline.execute() if asked else []
        named = {owner: _named(owner[1], *record) for owner, record in zip(asked, records, strict=True)}
        return {owner: images for owner, images in named.items() if images is not None}


def _is_over(state: bytes | None) -> bool:
    """Whether nobody will read a job's pictures any more. A state that this release does not know is not over."""
    try:
        return state is None or JobState(state.decode()).is_terminal
    except ValueError:
        return False


def _named(job_id: JobId, state: bytes | None, result: bytes | None) -> frozenset[str] | None:
    try:
        if state is None or not JobState(state.decode()).is_terminal:
            return None
        if state.decode() != JobState.SUCCEEDED:
            return frozenset()
        return codec.decode_storage_keys(result or b"", where=f"job {job_id}")
    except (ValueError, CorruptRecord) as error:
        structlog.get_logger().error("job_unreadable", job_id=job_id, error=str(error))
        return None
