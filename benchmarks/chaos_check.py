"""What must hold after `chaos.py` and `chaos_queue.py`, by Redis, the image store and what clients were told alone."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from app.domain.ids import JobId, LatentSpace, MemoryName, ModelId, TenantId
from app.domain.job import Job, JobRecord, JobState
from app.errors import NotFound
from app.jobs import keys
from app.jobs.store import JobStore
from app.jobs.types import JobLimits
from app.memory.codec import decode_entry
from app.memory.keys import MemoryKey, log_key
from app.memory.store import MemoryStore

MODEL = ModelId("toy")
SPACE = LatentSpace("toy")
MEMORY = MemoryName("default")
POISON = "poison"  # a prompt that begins so kills whoever begins to run it
_MAX_ENTRIES = 1_000_000


@dataclass
class Told:
    """What clients were told: which jobs were accepted, and of which a cancel was acknowledged in time."""

    accepted: dict[JobId, TenantId] = field(default_factory=dict)
    cancelled: set[JobId] = field(default_factory=set)


@dataclass(frozen=True)
class Findings:
    """What was found, in numbers, and every fault in words."""

    figures: dict[str, int]
    faults: list[str]

    def show(self) -> None:
        """Prints every figure, the first faults, and how many there are."""
        for what, count in self.figures.items():
            print(f"{what:32} {count:8}")
        for fault in self.faults[:50]:
            print("FAULT", fault)
        print(f"{len(self.faults)} faults")


async def check(redis: Redis, image_folder: Path, told: Told) -> Findings:
    """Every accepted job has ended once; memories and images are exactly those of what succeeded."""
    store, faults = JobStore(redis, JobLimits()), []
    records: list[JobRecord] = []
    for job_id, tenant_id in told.accepted.items():
        try:
            records.append(await store.get(tenant_id, job_id))
        except NotFound:
            faults.append(f"lost: {job_id} was accepted and is unknown")
    states = Counter(record.state.value for record in records)
    faults += [
        f"stranded: {record.job.job_id} is {record.state.value}"
        for record in records
        if not record.state.is_terminal
    ]
    letters = Counter[str]([letter.job_id for letter in await store.list_dead_letters(MODEL, _MAX_ENTRIES)])
    for record in records:
        faults += _check_end(record, told, letters)
    kept, num_out_of_order = await _kept(redis, records)
    images = [image for record in records for image in record.images]
    made = Counter[str](image.image_id for image in images)
    faults += [f"lost: {name} was made and is not remembered" for name in (made - kept)]
    faults += [f"double or foreign: {name} is remembered too often" for name in (kept - made)]
    stored = await asyncio.to_thread(stored_images, image_folder)
    named = {image.storage_key for image in images}
    faults += [f"lost: image {key} is not stored" for key in named - stored]
    left = await _left_behind(redis, records)
    faults += [f"left behind: {count} {what}" for what, count in left.items() if count]
    if num_out_of_order:
        faults.append(f"gap: {num_out_of_order} memories skip a version")
    blamed = [r for r in records if r.failure and r.failure.code == "poison" and not _is_poison(r.job)]
    figures = {
        "accepted": len(told.accepted),
        **{state.value: states[state.value] for state in JobState},
        "cancels acknowledged": len(told.cancelled),
        "begun more than once": sum(record.num_attempts > 1 for record in records),
        "poison": sum(letters.values()),
        "innocent but killed too often": len(blamed),
        "entries": sum(kept.values()),
        "images of lost attempts": len(stored - named),
    }
    return Findings(figures, faults)


async def plant(redis: Redis, tenants: Iterable[TenantId], fault: str) -> None:
    """Spoils a memory: an entry of the first tenant less, or one of the last tenant twice."""
    for tenant_id in sorted(set(tenants), reverse=fault == "double"):
        memory = MemoryKey(tenant_id, SPACE, MEMORY)
        last: Any = await redis.xrevrange(log_key(memory), count=1)
        if last:
            entry_id, fields = last[0]
            if fault == "loss":
                await redis.xdel(log_key(memory), entry_id)
            else:
                await redis.xadd(log_key(memory), fields, id=f"{int(entry_id.split(b'-')[0]) + 1}-0")
            return


def stored_images(folder: Path) -> set[str]:
    """The keys of the images that are there."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*.png")}


def _is_poison(job: Job) -> bool:
    return job.generation.prompt.startswith(POISON)


def _check_end(record: JobRecord, told: Told, letters: Counter[str]) -> list[str]:
    job_id, faults = record.job.job_id, []
    is_cancelled = record.state is JobState.CANCELLED
    if job_id in told.cancelled and not is_cancelled:
        faults.append(f"cancel broken: {job_id} is {record.state.value}")
    if _is_poison(record.job) and record.state is JobState.SUCCEEDED:
        faults.append(f"impossible: {job_id} kills its worker and succeeded")
    is_dead = record.failure is not None and record.failure.code == "poison"
    if letters[job_id] != int(is_dead):
        faults.append(f"letters: {job_id} has {letters[job_id]}")
    return faults


async def _kept(redis: Redis, records: Sequence[JobRecord]) -> tuple[Counter[str], int]:
    memories, kept, num_out_of_order = MemoryStore(redis), Counter[str](), 0
    for tenant_id in {record.job.tenant_id for record in records}:
        log = await memories.read_after(MemoryKey(tenant_id, SPACE, MEMORY), 0, _MAX_ENTRIES)
        num_out_of_order += [version for version, _ in log] != list(range(1, len(log) + 1))
        names = [decode_entry(data).image_id for _, data in log]
        own = {record.job.job_id for record in records if record.job.tenant_id == tenant_id}
        kept.update(name if name.rpartition("-")[0] in own else f"{name} of another tenant" for name in names)
    return kept, num_out_of_order


async def _left_behind(redis: Redis, records: Sequence[JobRecord]) -> dict[str, int]:
    tenants = {record.job.tenant_id for record in records}
    sets = [make(tenant, MODEL) for tenant in tenants for make in (keys.waiting_key, keys.released_key)]
    pending = await redis.xpending(keys.stream_key(MODEL), keys.GROUP)
    return {
        "open jobs": int(await redis.zcard(keys.open_key(MODEL))),
        "sets of waiting or released jobs": sum([int(await redis.exists(name)) for name in sets]),
        "pending entries": int(pending["pending"]),
    }
