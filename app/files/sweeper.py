"""Removes the bytes of files that are not there: expired, deleted, or never recorded because a process was killed."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence

from redis.asyncio import Redis

from app.domain.ids import FileId, TenantId
from app.files import keys
from app.files.contents import FileContents
from app.files.store import FileStore
from app.redis.turns import take_turn

SLACK_S = 600.0  # for clocks that differ, and for the time between an upload's last byte and its record


class FileSweeper:
    """One rule: bytes that no record names, and that are older than any upload may take, go.

    So a deployment needs a bucket, or a prefix, to itself: what another one's Redis knows looks forgotten here.
    """

    INTERVAL_S = 600.0

    def __init__(
        self,
        redis: Redis,
        files: FileStore,
        contents: FileContents,
        *,
        upload_timeout_s: float,
        clock_ms: Callable[[], int],
    ) -> None:
        self._redis = redis
        self._files = files
        self._contents = contents
        self._grace_s = upload_timeout_s + SLACK_S
        self._clock_ms = clock_ms

    async def sweep(self) -> int:
        """The number of objects removed; 0 where somebody swept within the interval. Raises StoreUnavailable.

        Cost: one listing of the store's folder, and one MGET for each tenant among each 100 objects.
        """
        if not await take_turn(self._redis, keys.SWEEP_KEY, interval_s=self.INTERVAL_S):
            return 0
        before_s = self._clock_ms() / 1000 - self._grace_s
        num_removed = await self._contents.delete_partial_before(before_s)
        async for found in self._contents.list_before(before_s):
            left_over = await self._left_over(found)
            await asyncio.gather(*(self._contents.delete(key) for key in left_over))
            num_removed += len(left_over)
        return num_removed

    async def _left_over(self, found: Sequence[str]) -> list[str]:
        by_tenant: dict[TenantId, list[FileId]] = defaultdict(list)
        for place in filter(None, map(keys.parse_content_key, found)):
            by_tenant[place[0]].append(place[1])
        return [
            keys.content_key(tenant_id, file_id)
            for tenant_id, file_ids in by_tenant.items()
            for file_id in await self._files.without_record(tenant_id, file_ids)
        ]
