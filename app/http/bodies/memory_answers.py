"""What `/v1/memories` answers with."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from app.domain.ids import IMAGE_FORM, NAME_FORM, TenantId, parse_image_id
from app.domain.job import JobRecord, StoredImage
from app.http.bodies.generation_bodies import AskedPrompt, WireModel
from app.http.bodies.showing import image_url
from app.http.deps import Deps
from app.http.forms.thumbnails import USUAL_PX
from app.memory.codec import MemoryEntry
from app.memory.overview import MemoryStats
from app.memory.shaping import Setting

MAX_FORGOTTEN = 1000
MAX_VERSION = 2**53
MAX_ENTRIES = 10_000_000
MAX_AGE_S = 100 * 366 * 86_400
MAX_TIME_S = 2**40  # in milliseconds still exact in JSON numbers of every client

EntryVersion = Annotated[int, Field(ge=1, le=MAX_VERSION)]
ImageName = Annotated[str, StringConstraints(pattern=IMAGE_FORM)]


def _without_default(schema: JsonDict) -> None:
    """A member that is absent where it is not given."""
    del schema["default"]


class LikeBody(WireModel):
    """Entries whose prompts are like one, as a model understands them."""

    prompt: AskedPrompt = Field(
        description="Only its words count.", examples=["a red star"], json_schema_extra={"pattern": r"\S"}
    )
    min_similarity: float = Field(
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="From which cosine on; what a search tells as `similarity`.",
    )
    model: str | None = Field(
        default=None,
        max_length=200,
        description="A model's id, of the memory's latent space; one that a worker has if absent.",
    )


class ForgetBody(WireModel):
    """What to forget: one of these, with images also `everywhere`."""

    model_config = ConfigDict(
        json_schema_extra={
            "minProperties": 1,
            "if": {"required": ["everywhere"]},
            "then": {"required": ["images"], "maxProperties": 2},
            "else": {"maxProperties": 1},
        }
    )

    versions: list[EntryVersion] | None = Field(
        default=None, min_length=1, max_length=MAX_FORGOTTEN, description="The entries of these versions."
    )
    images: list[ImageName] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_FORGOTTEN,
        description="The entries of these images, by their ids.",
    )
    before: int | None = Field(
        default=None, ge=0, le=MAX_TIME_S, description="All entries from before this time (Unix seconds)."
    )
    like: LikeBody | None = Field(
        default=None,
        description="All entries whose prompts are like this one. A worker is asked, as for a search.",
    )
    all: bool | None = Field(
        default=None,
        description="Everything; what is being made is not remembered either.",
        json_schema_extra={"enum": [True]},
    )
    everywhere: bool = Field(
        default=False, description="With `images`: in all your memories, so in forks of this one too."
    )

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        asked = self.model_fields_set - {"everywhere"}
        given = [name for name in asked if getattr(self, name) not in (None, False)]
        if len(asked) != 1 or not given:
            raise PydanticCustomError(
                "invalid_value", "give one of versions, images, before, like, or all: true"
            )
        if "everywhere" in self.model_fields_set and self.images is None:
            raise PydanticCustomError("invalid_value", "everywhere goes with images")
        return self

    @property
    def act(self) -> str:
        """Which one."""
        (act,) = self.model_fields_set - {"everywhere"}
        return act


class ShapeBody(WireModel):
    """What to change of a memory's settings; null takes a cap away. Or another name for it, alone."""

    model_config = ConfigDict(
        json_schema_extra={
            "minProperties": 1,
            "if": {"required": ["name"]},
            "then": {"maxProperties": 1},
        }
    )

    name: Annotated[str, StringConstraints(pattern=NAME_FORM)] = Field(
        default="",
        description="Another name. Versions stay.",
        json_schema_extra=_without_default,
    )

    frozen: bool | None = Field(default=None, description="Whether it takes nothing new.")
    max_entries: int | None = Field(
        default=None, ge=1, le=MAX_ENTRIES, description="How many it holds at most; the oldest go first."
    )
    max_age_s: int | None = Field(
        default=None,
        ge=1,
        le=MAX_AGE_S,
        description="How old an entry becomes; looked at whenever one is added.",
    )
    keep_prompts: bool | None = Field(
        default=None,
        description="Whether the prompts of images are kept with them from now on. False, or null, also removes those that are"
        " there.",
    )

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if not self.model_fields_set:
            raise PydanticCustomError(
                "invalid_value", "give name, or one of frozen, max_entries, max_age_s, keep_prompts"
            )
        if "name" in self.model_fields_set and len(self.model_fields_set) > 1:
            raise PydanticCustomError("invalid_value", "give name alone")
        return self

    def changes(self) -> dict[Setting, int | None]:
        """The settings as they are kept."""
        found: dict[Setting, int | None] = {}
        if "frozen" in self.model_fields_set:
            found["frozen"] = 1 if self.frozen else None
        if "max_entries" in self.model_fields_set:
            found["max_entries"] = self.max_entries
        if "max_age_s" in self.model_fields_set:
            found["max_age_s"] = self.max_age_s
        if "keep_prompts" in self.model_fields_set:
            found["keep_prompts"] = 1 if self.keep_prompts else None
        return found


class ForgottenAnswer(BaseModel):
    """What was forgotten. No job that begins from now on reads it."""

    id: str
    object: Literal["memory.forgotten"] = "memory.forgotten"
    num_forgotten: int = Field(description="How many entries.")
    version: int = Field(description="The memory's version after it.")
    num_running: int = Field(
        description="Jobs of yours that had begun before, may have read it, and still run. The answer has waited for them."
    )
    num_remaining: int = Field(
        description="Images, with their jobs' records, that are still to be removed; that goes on until it is done."
    )


class MemoryDeletedAnswer(ForgottenAnswer):
    """A memory that was there and is no more."""

    deleted: Literal[True] = True


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
    frozen: bool = Field(description="Whether it takes nothing new.")
    max_entries: int | None = Field(description="Above it the oldest go; null: no cap.")
    max_age_s: int | None = Field(description="Older ones go when the next is remembered; null: no cap.")
    keep_prompts: bool = Field(description="Whether the prompts of images are kept with them.")


class MemoriesAnswer(BaseModel):
    """Memories in order of their ids."""

    object: Literal["list"] = "list"
    data: list[MemoryAnswer]
    first_id: str | None
    last_id: str | None = Field(description="What `after` takes for the next ones.")
    has_more: bool


class EntryAnswer(BaseModel):
    """What a memory holds of one image."""

    version: int = Field(description="The version of the memory that it took.")
    object: Literal["memory.entry"] = "memory.entry"
    created_at: int = Field(description="When it was remembered (Unix seconds).")
    seed: int = Field(description="0 for a picture that was uploaded.")
    image_id: str
    job_id: str
    image_url: str | None = Field(description="Signed; null where the image is not kept any more.")
    thumbnail_url: str | None = Field(
        description=f"The same in WebP, {USUAL_PX} px at most; `max_px` takes another number."
    )
    prompt: str | None = Field(
        description="As the memory keeps it, or the job's record; null once that is over and the memory keeps no prompts."
    )


class EntriesAnswer(BaseModel):
    """Entries of a memory in order."""

    object: Literal["list"] = "list"
    data: list[EntryAnswer]
    first_version: int | None = Field(
        description="The version of the first of `data`; null where there is none."
    )
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
        frozen=stats.shape.is_frozen,
        max_entries=stats.shape.max_entries,
        max_age_s=stats.shape.max_age_s,
        keep_prompts=stats.shape.keeps_prompts,
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
    urls = [
        image_url(record, image, deps, base_url=base_url) if record and image and kept else None
        for record, image, kept in zip(records, images, are_kept, strict=True)
    ]
    return [
        EntryAnswer(
            version=version,
            created_at=entry.created_at_ms // 1000,
            seed=entry.seed,
            image_id=entry.image_id,
            job_id=job_id,
            image_url=url,
            thumbnail_url=url and f"{url}&max_px={USUAL_PX}",
            prompt=entry.prompt or (record.job.prompt if record else None),
        )
        for (version, entry), job_id, record, url in zip(entries, job_ids, records, urls, strict=True)
    ]


def _image_of(record: JobRecord | None, entry: MemoryEntry) -> StoredImage | None:
    images = record.images if record else ()
    return next((image for image in images if image.image_id == entry.image_id), None)


async def _is_kept(image: StoredImage | None, deps: Deps) -> bool:
    return image is not None and await deps.images.has(image.storage_key)
