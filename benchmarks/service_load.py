"""Requests to a service, timed; and what Redis and the workers tell of them."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import httpx
from redis.asyncio import Redis
from service_scene import MODEL, Scene

from app.domain.ids import JobId, TenantId
from app.jobs.events import JobEvents
from app.jobs.keys import events_key
from app.redis.connection import connect

PHASES = ("accept", "wait for a worker", "make and commit", "answer")
_BODY = {"prompt": "a star", "model": MODEL, "response_format": "url"}


@dataclass(frozen=True)
class Timed:
    """A request: when it was sent and answered, in Unix milliseconds, and the job that it was, where it was one."""

    sent_ms: float
    answered_ms: float
    job_id: str | None = None

    @property
    def ms(self) -> float:
        """How long it took."""
        return self.answered_ms - self.sent_ms


T = TypeVar("T")
Deed = Callable[[httpx.AsyncClient], Awaitable[str | None]]


@asynccontextmanager
async def client_of(there: Scene, tenant: str, at_a_time: int) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the tenant's key and so many connections."""
    limits = httpx.Limits(max_connections=at_a_time, max_keepalive_connections=at_a_time)
    headers = {"authorization": f"Bearer {there.keys[tenant]}"}
    async with httpx.AsyncClient(base_url=there.url, headers=headers, limits=limits, timeout=300) as client:
        yield client


async def generate(client: httpx.AsyncClient) -> str | None:
    """One image; the job that made it."""
    answer = await client.post("/v1/images/generations", json=_BODY)
    answer.raise_for_status()
    image_id: str = answer.json()["data"][0]["id"]
    return image_id.rpartition("-")[0]


async def livez(client: httpx.AsyncClient) -> str | None:
    """A request that does nothing."""
    (await client.get("/livez")).raise_for_status()
    return None


async def submit(client: httpx.AsyncClient, number: int, **members: object) -> list[str]:
    """So many jobs of one image, accepted one after another; their ids."""
    found = []
    for _ in range(number):
        answer = await client.post("/v1/jobs", json={"prompt": "a star", "model": MODEL, **members})
        answer.raise_for_status()
        found.append(answer.json()["id"])
    return found


async def timed(client: httpx.AsyncClient, number: int, at_a_time: int, deed: Deed) -> list[Timed]:
    """So many requests, so many at a time, each timed by itself."""
    found: list[Timed] = []

    async def one(_: object) -> None:
        sent_ms = 1000 * time.time()
        job_id = await deed(client)
        found.append(Timed(sent_ms, 1000 * time.time(), job_id))

    await all_of(one, range(number), at_a_time=at_a_time)
    return found


async def all_of(deed: Callable[[T], Awaitable[None]], things: Iterable[T], *, at_a_time: int) -> None:
    """The deed to each of the things, so many at a time."""
    left = iter(things)

    async def some() -> None:
        for thing in left:
            await deed(thing)

    await asyncio.gather(*(some() for _ in range(at_a_time)))


async def ends_ms(there: Scene, tenant: str, job_ids: Iterable[str]) -> list[float]:
    """When each job ended, by Redis' clock; waits for those that have not."""
    redis = connect(there.redis_url)
    found = []
    async with JobEvents(redis) as events:
        for job_id in job_ids:
            last = None
            async for event in events.follow(TenantId(tenant), JobId(job_id)):
                last = event or last
            found.append(float(last.at_ms) if last else float("nan"))
    await redis.aclose()
    return found


async def phases_ms(there: Scene, tenant: str, made: Iterable[Timed]) -> dict[str, float]:
    """Medians of where the requests' time went, by their jobs' events: of the same machine's clock, to a millisecond."""
    redis, parts = connect(there.redis_url), []
    for one in made:
        found: Any = await redis.xrange(events_key(TenantId(tenant), JobId(one.job_id or "")))
        at_ms = {fields[b"type"].decode(): float(event_id.partition(b"-")[0]) for event_id, fields in found}
        points = [one.sent_ms, at_ms["queued"], at_ms["running"], at_ms["succeeded"], one.answered_ms]
        parts.append([later - earlier for earlier, later in pairwise(points)])
    await redis.aclose()
    return {
        phase: statistics.median(values)
        for phase, values in zip(PHASES, zip(*parts, strict=True), strict=True)
    }


async def round_trips_a_job(there: Scene, tenant: str, *, number: int = 40, idle_s: float = 3.0) -> float:
    """What all processes ask Redis for one image, without what they ask anyway: what scripts do inside does not count."""
    idle_a_second = await _heard(there, lambda: asyncio.sleep(idle_s)) / idle_s

    async def requests() -> None:
        async with client_of(there, tenant, 1) as client:
            await timed(client, number, 1, generate)

    began_s = time.perf_counter()
    heard = await _heard(there, requests)
    return (heard - idle_a_second * (time.perf_counter() - began_s)) / number


async def _heard(there: Scene, during: Callable[[], Awaitable[object]]) -> int:
    """How many commands reach Redis while something happens."""
    redis: Redis = connect(there.redis_url)
    heard = 0

    async def count() -> None:
        nonlocal heard
        async with redis.monitor() as monitor:
            listening.set()
            async for command in monitor.listen():
                heard += command["client_type"] != "lua"

    listening = asyncio.Event()
    counting = asyncio.create_task(count())
    await listening.wait()
    await during()
    counting.cancel()
    await asyncio.wait((counting,))
    await redis.aclose()
    return heard


def engine(there: Scene) -> tuple[float, float, float]:
    """Of all workers so far: seconds that the engine took, batches, images."""
    totals = [0.0, 0.0, 0.0]
    names = ("sparke_batch_seconds_sum", "sparke_batch_seconds_count", "sparke_batch_images_sum")
    for url in there.metrics_urls:
        for line in httpx.get(url).text.splitlines():
            for index, name in enumerate(names):
                if line.startswith(name):
                    totals[index] += float(line.rpartition(" ")[2])
    return totals[0], totals[1], totals[2]


def quantile(values: list[float], percent: int) -> float:
    """A percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
