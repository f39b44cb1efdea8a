"""The judge of `chaos.py`: what clients heard is held against what the API shows, Redis knows and the store holds."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from chaos_check import Findings, Told, check, plant, stored_images
from chaos_client import Api, Heard, Wish, wrong_with_image
from chaos_scene import Scene
from redis.asyncio import Redis

from app.domain.ids import JobId, TenantId, make_job_id
from app.domain.job import JobRecord, JobState
from app.errors import NotFound
from app.images.store import ImageStore, image_key
from app.jobs import keys as job_keys
from app.jobs.orphans import OrphanSweeper
from app.jobs.store import JobStore
from app.jobs.types import JobLimits
from app.jobs.workers import now_ms
from app.redis.connection import connect

# What can be spoilt on purpose, and how the fault that must be found begins.
PLANTS: Mapping[str, str] = {
    "loss": "lost: ",
    "double": "double ",
    "image": "lost: image",
    "pixels": "image: ",
    "orphan": "orphan: ",
    "event": "event ",
    "foreign": "foreign: ",
    "twin": "key twice: ",
    "cancel": "cancel broken: ",
}
_SAMPLE = 30


@dataclass(frozen=True)
class Played:
    """What was played: the scene, whose API and Redis still run, what was wished for, and what was heard."""

    scene: Scene
    wishes: Sequence[Wish]
    api_keys: Mapping[TenantId, str]
    heard: Heard
    seconds: float


async def judge(played: Played, fault: str | None = None) -> Findings:
    """What the checker says; after a fault was planted, where one is named."""
    redis = connect(played.scene.redis.url)
    try:
        if fault is not None:
            await _plant(redis, played, fault)
        return await _judge(redis, played)
    finally:
        await redis.aclose()


async def _judge(redis: Redis, played: Played) -> Findings:
    heard, scene = played.heard, played.scene
    faults = list(heard.faults)
    async with httpx.AsyncClient(timeout=30) as http:
        api = Api(http, scene.urls, played.api_keys, Heard(), random.Random(1))
        listed = {tenant: await _list(api, tenant) for tenant in played.api_keys}
        faults += _check_lists(played, listed)
        faults += await _ask_again(api, played)
    owners = {JobId(job["id"]): tenant for tenant, jobs in listed.items() for job in jobs} | heard.tenants
    found = await check(redis, scene.images, Told(owners, heard.cancelled))
    records = await _read(redis, owners)
    num_swept = await _sweep(redis, scene.images)
    faults += found.faults + _check_ends(heard, records)
    faults += await asyncio.to_thread(_check_images, scene.images, records)
    faults += await _check_events(redis, played)
    figures = {
        "wishes": len(played.wishes),
        **found.figures,
        "orphans swept": num_swept,
        "jobs followed": len(heard.followed),
        "events heard": sum(map(len, heard.followed.values())),
        **dict(sorted(heard.counts.items())),
    }
    return Findings(figures, faults)


async def _list(api: Api, tenant_id: TenantId) -> list[dict[str, Any]]:
    """All that the tenant's own list shows, page by page, each page by another replica."""
    jobs: list[dict[str, Any]] = []
    page: dict[str, Any] = {"next_after": None, "has_more": True}
    while page["has_more"]:
        url = api.urls[len(jobs) // 100 % len(api.urls)]
        query = {"limit": "100"} | ({"after": page["next_after"]} if page["next_after"] else {})
        answer = await api.http.get(f"{url}/v1/jobs", params=query, headers=api.headers(tenant_id))
        page = answer.raise_for_status().json()
        jobs += page["data"]
    return jobs


def _check_lists(played: Played, listed: Mapping[TenantId, Sequence[dict[str, Any]]]) -> list[str]:
    """Each wish has one job, of which its clients were told, in its own tenant's list."""
    faults, jobs_of = [], defaultdict[int, list[JobId]](list)
    for tenant, jobs in listed.items():
        for job in jobs:
            wish = played.wishes[int(job["request"]["prompt"].split()[1])]
            if wish.tenant_id == tenant:
                jobs_of[wish.number].append(JobId(job["id"]))
            else:
                faults.append(f"foreign: {tenant} is shown {job['id']} of {wish.tenant_id}")
    for wish in played.wishes:
        shown, told = jobs_of[wish.number], played.heard.ids[wish.key]
        if len(shown) > 1 or len(told) > 1:
            faults.append(f"key twice: {wish.key} is {sorted(shown)}, and clients heard of {sorted(told)}")
        if not shown or not told <= set(shown):
            faults.append(f"lost: {wish.key} is {shown}, and clients heard of {sorted(told)}")
    return faults


async def _ask_again(api: Api, played: Played) -> list[str]:
    """Keys stand for the same jobs now, at every replica, and nobody else's key opens them."""
    dice, faults = random.Random(2), []
    asked = [wish for wish in played.wishes if not wish.is_waited_for]
    for wish in dice.sample(asked, min(_SAMPLE, len(asked))):
        for turn in range(len(api.urls)):
            answer = await api.call(wish, "POST", wish.path, first=turn, is_wish=True)
            if {answer.json().get("id")} != played.heard.ids[wish.key]:
                faults.append(f"key twice: {wish.key} now gets {answer.text[:100]}")
        other = next(tenant for tenant in played.api_keys if tenant != wish.tenant_id)
        job_id = next(iter(played.heard.ids[wish.key]))
        answer = await api.http.get(f"{api.urls[0]}/v1/jobs/{job_id}", headers=api.headers(other))
        if answer.status_code != 404:
            faults.append(f"foreign: {other} gets {answer.status_code} for {job_id}")
    return faults


async def _read(redis: Redis, owners: Mapping[JobId, TenantId]) -> list[JobRecord]:
    store, records = JobStore(redis, JobLimits()), []
    for job_id, tenant in owners.items():
        try:
            records.append(await store.get(tenant, job_id))
        except NotFound:  # which `check` has said
            continue
    return records


async def _sweep(redis: Redis, folder: Path) -> int:
    """The sweep for orphans as a worker does it, but now and of everything."""
    await redis.delete(OrphanSweeper.KEY)
    images = ImageStore.open(folder.as_uri())
    return await OrphanSweeper(redis, images, clock_ms=now_ms, grace_s=-60).sweep()


def _check_ends(heard: Heard, records: Sequence[JobRecord]) -> list[str]:
    states = {record.job.job_id: record.state for record in records}
    return [
        f"lost: {job_id} was answered with images and is {states.get(job_id)}"
        for job_id in heard.succeeded
        if states.get(job_id) is not JobState.SUCCEEDED
    ]


def _check_images(folder: Path, records: Sequence[JobRecord]) -> list[str]:
    """After the sweep the store holds one image for each that was asked for and made, which shows what it should."""
    faults, named = [], Counter[str]()
    for record in records:
        made, asked = record.images, record.job.generation
        named.update(image.storage_key for image in made)
        if record.state is JobState.SUCCEEDED and len(made) != asked.num_images:
            faults.append(f"image: {record.job.job_id} has {len(made)} images, not {asked.num_images}")
        for image, seed in zip(made, asked.seeds, strict=False):
            path = folder / image.storage_key
            wrong = wrong_with_image(path.read_bytes(), asked.prompt, seed) if path.exists() else None
            if wrong is not None:
                faults.append(f"image: {image.storage_key}: {wrong}")
    faults += [f"image: {key} is named {count} times" for key, count in named.items() if count > 1]
    return faults + [f"orphan: {key} is left after the sweep" for key in stored_images(folder) - set(named)]


async def _check_events(redis: Redis, played: Played) -> list[str]:
    """Each follower was told of exactly the events that the job's stream has, in its order."""
    faults = []
    for job_id, told in played.heard.followed.items():
        name = job_keys.events_key(played.heard.tenants[job_id], job_id)
        entries: Any = await redis.xrange(name)
        there = [(event_id.decode(), fields[b"type"].decode()) for event_id, fields in entries]
        if told != there:
            faults.append(f"event missed or doubled: {job_id}: told {told}, there are {there}")
    return faults


async def _plant(redis: Redis, played: Played, fault: str) -> None:
    """Spoils something, which `PLANTS` says how to find again."""
    heard = played.heard
    if fault in {"loss", "double"}:
        await plant(redis, heard.tenants.values(), fault)
        return
    job_id = sorted(heard.succeeded)[list(PLANTS).index(fault)]  # another one for each fault
    tenant = heard.tenants[job_id]
    record = await JobStore(redis, JobLimits()).get(tenant, job_id)
    if not record.images:
        raise ValueError(f"expected images of {job_id}, found none")
    path = played.scene.images / record.images[0].storage_key
    if fault == "image":
        path.unlink()
    elif fault == "pixels":
        path.write_bytes(path.read_bytes()[:100])
    elif fault == "orphan":
        unknown = played.scene.images / image_key(tenant, make_job_id(1, bytes(8)), 1, 0)
        unknown.parent.mkdir(parents=True)
        unknown.write_bytes(b"png")
    elif fault == "event":
        followed = next(iter(heard.followed))
        name = job_keys.events_key(heard.tenants[followed], followed)
        first: Any = await redis.xrange(name, count=1)
        await redis.xdel(name, first[0][0])
    elif fault == "cancel":
        heard.cancelled.add(job_id)
    else:
        target = next(one for one in played.api_keys if (one == tenant) == (fault == "twin"))
        copied = make_job_id(now_ms(), bytes(8)) if fault == "twin" else job_id
        await redis.copy(job_keys.job_key(tenant, job_id), job_keys.job_key(target, copied))
        await redis.zadd(job_keys.jobs_key(target), {copied: 0})
