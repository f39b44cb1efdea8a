"""What `/v1/memories` answers with."""

import asyncio
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from app.domain.ids import TenantId, parse_image_id
from app.domain.job import JobRecord
from app.domain.result import GeneratedImage
from app.http.deps import Deps
from app.http.showing import image_url
from app.memory.codec import MemoryEntry
from app.memory.overview import MemoryStats


class MemoryAnswer(BaseModel):
    """A memory. Times are Unix seconds."""

    id: str = Field(description="The latent space and the name, with a dot between them.")
    object: Literal["memory"] = "memory"
    name: str = Field(description="What `diversity.memory.name` takes.")
    latent_space: str = Field(description="That of the models which share the memory.")
    version: int = Field(description="The version now. Entries and acts of forgetting take one each.")
    num_entries: int = Field(description="How many images it holds now.")
    bytes: int = Field(description="What its entries take in Redis, about.")
    created_at: int
    newest_entry_at: int | None = Field(description="Null where it holds nothing.")


class MemoriesAnswer(BaseModel):
    """Memories in order of their ids."""

    object: Literal["list"] = "list"
    data: list[MemoryAnswer]
    first_id: str | None
    last_id: str | None = Field(description="What `after` takes for the next ones.")
    has_more: bool


class EntryAnswer(BaseModel):
    """What a memory holds of one image."""

    version: int
    object: Literal["memory.entry"] = "memory.entry"
    created_at: int
    seed: int
    image_id: str
    job_id: str
    image_url: str | None = Field(description="Signed; null where the image is not kept any more.")
    prompt: str | None = Field(
        description="Of the job's record; null once that is over: a memory keeps no text."
    )


class EntriesAnswer(BaseModel):
    """Entries of a memory in order."""

    object: Literal["list"] = "list"
    data: list[EntryAnswer]
    first_version: int | None
    last_version: int | None = Field(description="What `after` takes for the next ones.")
    has_more: bool


def describe_memory(stats: MemoryStats) -> MemoryAnswer:
    """The memory as it is shown."""
    memory = stats.memory
    return MemoryAnswer(
        id=memory.memory_id,
        name=memory.name,
        latent_space=memory.latent_space,
        version=stats.version,
        num_entries=stats.num_entries,
        bytes=stats.size_bytes,
        created_at=stats.created_at_ms // 1000,
        newest_entry_at=None if stats.newest_at_ms is None else stats.newest_at_ms // 1000,
    )


async def describe_entries(
    tenant_id: TenantId, entries: Sequence[tuple[int, MemoryEntry]], deps: Deps, *, base_url: str
) -> list[EntryAnswer]:
    """The entries as they are shown, with what is still kept of their jobs. Raises StoreUnavailable.

    Cost: one round trip, and a look at the object store for each image whose job has a record.
    """
    job_ids = [parse_image_id(entry.image_id)[0] for _, entry in entries]
    records = await deps.job_lister.read(tenant_id, job_ids)
    images = [_image_of(record, entry) for record, (_, entry) in zip(records, entries, strict=True)]
    are_kept = await asyncio.gather(*(_is_kept(image, deps) for image in images))
    return [
        EntryAnswer(
            version=version,
            created_at=entry.created_at_ms // 1000,
            seed=entry.seed,
            image_id=entry.image_id,
            job_id=job_id,
            image_url=image_url(record, image, deps, base_url=base_url)
            if record and image and kept
            else None,
            prompt=record.job.request.prompt if record else None,
        )
        for (version, entry), job_id, record, image, kept in zip(
            entries, job_ids, records, images, are_kept, strict=True
        )
    ]


def _image_of(record: JobRecord | None, entry: MemoryEntry) -> GeneratedImage | None:
    images = record.result.images if record and record.result else ()
    return next((image for image in images if image.image_id == entry.image_id), None)


async def _is_kept(image: GeneratedImage | None, deps: Deps) -> bool:
    return image is not None and await deps.images.has(image.storage_key)
