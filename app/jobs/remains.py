"""Removes what is left of forgotten entries: image files, the records of their jobs, the bytes in logs, prompts."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from app.domain.ids import (
    ImageId,
    JobId,
    LatentSpace,
    MemoryName,
    TenantId,
    image_id,
    parse_image_id,
    parse_tenant_id,
)
from app.errors import InvalidId
from app.images.store import ImageStore, index_of, parse_picture_key
from app.jobs import codec, keys
from app.memory.keys import (
    COMMON,
    FORGETTING_KEY,
    REMAINS_SWEEP_KEY,
    MemoryKey,
    copy_key,
    discarded_key,
    log_key,
    meta_key,
    remains_key,
)
from app.memory.rewriting import LogRewriter
from app.redis.errors import redis_errors
from app.redis.scripts import load_script
from app.redis.turns import take_turn

PAGE = 200
_LISTED_FOR_MS = (
    3_600_000  # a tenant stays listed so long after it forgot, for an act may still be on its way
)


class RemainsCleaner:
    """Does what the remains of tenants name. Every step is idempotent, and struck off only once it is done.

    An image goes with all its files, of lost fences and previews too. A job's record goes with the last of its images,
    and with it prompt, result, events and idempotency key; until then it tells of the images that are left.
    """

    INTERVAL_S = 30.0

    def __init__(self, redis: Redis, images: ImageStore, *, clock_ms: Callable[[], int]) -> None:
        self._redis = redis
        self._images = images
        self._clock_ms = clock_ms
        load = partial(load_script, redis, "app.memory", after=COMMON)
        self._discard = load("discard")
        self._compact = load("compact")
        self._rewriter = LogRewriter(redis)
        self._forget_job = load_script(redis, "app.jobs", "forget_job")
        self._forget_tenant = load_script(redis, "app.jobs", "forget_tenant")

    async def sweep(self) -> int:
        """The number of images whose remains were removed, of all tenants; 0 where another process swept just now.

        Raises StoreUnavailable. What it had not come to is done at the next sweep.
        """
        if not await take_turn(self._redis, REMAINS_SWEEP_KEY, interval_s=self.INTERVAL_S):
            return 0
        num_removed = 0
        for tenant_id, score in await self._list_tenants():
            num_removed += await self.clean(tenant_id)
            if self._clock_ms() - score > _LISTED_FOR_MS and await self.count(tenant_id) == 0:
                await self._strike_tenant(tenant_id, score)
        return num_removed

    @redis_errors
    async def count(self, tenant_id: TenantId) -> int:
        """How many images and logs are left to see to. Raises StoreUnavailable."""
        return int(await self._redis.zcard(remains_key(tenant_id)))

    @redis_errors
    async def clean(self, tenant_id: TenantId) -> int:
        """Removes all of a tenant's remains; the number of images. Raises StoreUnavailable.

        Logs are seen to first, for they name images; a job's record last, for then nobody finds its images' files.
        """
        num_images = 0
        while logs := await self._named(tenant_id, "log"):
            for member in logs:
                await self._discard_log(tenant_id, member)
        while images := await self._named(tenant_id, "image"):
            await self._remove_images(tenant_id, images)
            num_images += len(images)
        while logs := await self._named(tenant_id, "prompts"):
            for member in logs:
                await self._rewriter.take_prompts_out(_memory_of(tenant_id, member))
        while logs := await self._named(tenant_id, "compact"):
            for member in logs:
                await self._compact_log(tenant_id, member)
        return num_images

    @redis_errors
    async def _list_tenants(self) -> list[tuple[TenantId, float]]:
        listed: Any = await self._redis.zrange(FORGETTING_KEY, 0, -1, withscores=True)
        return [(parse_tenant_id(member.decode()), score) for member, score in listed]

    @redis_errors
    async def _strike_tenant(self, tenant_id: TenantId, score: float) -> None:
        """Takes the tenant off the list, and has Redis write its file anew, which had all that was ever written.

        Managed servers may refuse that, and write their files when they like.
        """
        if not await self._forget_tenant([FORGETTING_KEY], [tenant_id, f"{score:.0f}"]):
            return
        try:
            facts: Any = await self._redis.info("persistence")
            if facts["aof_enabled"]:
                await self._redis.bgrewriteaof()
        except ResponseError as error:
            structlog.get_logger().warning("file_not_rewritten", error=str(error))

    async def _named(self, tenant_id: TenantId, kind: str) -> list[str]:
        """Some of the remains of a kind. Cost: O(log n)."""
        page: Any = await self._redis.zrangebylex(
            remains_key(tenant_id), f"[{kind}:", f"({kind};", start=0, num=PAGE
        )
        return [member.decode() for member in page]

    async def _strike(self, tenant_id: TenantId, members: Sequence[str]) -> None:
        await self._redis.zrem(remains_key(tenant_id), *members)

    async def _discard_log(self, tenant_id: TenantId, member: str) -> None:
        _, space, name, token = member.split(":")
        memory = MemoryKey(tenant_id, LatentSpace(space), MemoryName(name))
        touched = [discarded_key(memory, token), remains_key(tenant_id)]
        while await self._discard(touched, [PAGE, member]):
            continue

    async def _compact_log(self, tenant_id: TenantId, member: str) -> None:
        memory = _memory_of(tenant_id, member)
        touched = [log_key(memory), copy_key(memory), remains_key(tenant_id), meta_key(memory)]
        while not await self._compact(touched, [PAGE, member]):
            continue

    async def _remove_images(self, tenant_id: TenantId, members: Sequence[str]) -> None:
        of_jobs: defaultdict[JobId, set[int]] = defaultdict(set)
        for member in members:
            try:
                job_id, index = parse_image_id(member.removeprefix("image:"))
            except InvalidId:
                continue
            of_jobs[job_id].add(index)
        await asyncio.gather(*(self._remove_files(tenant_id, *job) for job in of_jobs.items()))
        for job_id, indices in of_jobs.items():
            if await self._edit_job(tenant_id, job_id, {image_id(job_id, index) for index in indices}):
                await self._remove_pictures(tenant_id, job_id)
        await self._strike(tenant_id, members)

    async def _remove_files(self, tenant_id: TenantId, job_id: JobId, indices: Iterable[int]) -> None:
        gone = set(indices)
        async for found in self._images.list_of(tenant_id, job_id):
            await asyncio.gather(*(self._images.delete(key) for key in found if index_of(key) in gone))

    async def _remove_pictures(self, tenant_id: TenantId, job_id: JobId) -> None:
        """What an edit began with."""
        async for found in self._images.list_of(tenant_id, job_id):
            await asyncio.gather(*(self._images.delete(key) for key in found if parse_picture_key(key)))

    async def _edit_job(self, tenant_id: TenantId, job_id: JobId, gone: set[ImageId]) -> bool:
        """Takes the images out of the job's record; whether the record went with the last of them."""
        job, events = keys.job_key(tenant_id, job_id), keys.events_key(tenant_id, job_id)
        while True:
            found: Any = self._redis.hmget(job, ["job", "result", "idempotency"])
            asked, result, idempotency = await found
            touched = [job, events, keys.jobs_key(tenant_id), *([idempotency] if idempotency else [])]
            left = codec.without_images(asked or b"", result or b"", gone, where=f"job {job_id}")
            if await self._forget_job(touched, [job_id, result or b"", left]):
                return not left


def _memory_of(tenant_id: TenantId, member: str) -> MemoryKey:
    _, space, name = member.split(":")
    return MemoryKey(tenant_id, LatentSpace(space), MemoryName(name))
