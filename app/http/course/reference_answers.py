"""What `/v1/references` answers with."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.domain.job import JobRecord
from app.http.bodies.showing import image_url
from app.http.course.references import result_of_pictures
from app.http.deps import Deps
from app.http.forms.reference_form import MAX_PICTURES, ReferenceFields
from app.http.forms.thumbnails import USUAL_PX
from app.http.openapi.error_docs import ALLOWANCE_DOCS, EXHAUSTED_DOCS
from app.http.openapi.form_docs import flat_members
from app.memory.keys import MemoryKey
from app.memory.overview import MemoryStats


class SentImage(BaseModel):
    """A picture that was sent, as it is kept: fitted to a size that the model makes."""

    id: str
    url: str = Field(description="Signed.")
    thumbnail_url: Annotated[str, Field(description=f"The same in WebP, {USUAL_PX} px at most.")]


class ReferenceAnswer(BaseModel):
    """A memory, and the images that it was given now."""

    id: str = Field(description="The memory's id, as `/v1/memories` has it.")
    object: Literal["reference"] = "reference"
    name: str = Field(
        description="What `diversity.novelty.reference` and `diversity.context.reference` take."
    )
    latent_space: str
    model: str
    num_entries: int = Field(description="How many images it holds now.")
    version: int = Field(description="The memory's version now.")
    data: list[SentImage] = Field(description="In the order of the pictures.")


def describe_reference(
    record: JobRecord, stats: MemoryStats, deps: Deps, *, base_url: str
) -> ReferenceAnswer:
    """The answer of a job of pictures that has ended well. Raises its failure."""
    result = result_of_pictures(record)
    urls = [(image.image_id, image_url(record, image, deps, base_url=base_url)) for image in result.images]
    return ReferenceAnswer(
        id=stats.memory.memory_id,
        name=result.memory_name,
        latent_space=result.latent_space,
        model=record.job.model,
        num_entries=stats.num_entries,
        version=stats.version,
        data=[SentImage(id=name, url=url, thumbnail_url=f"{url}&max_px={USUAL_PX}") for name, url in urls],
    )


def memory_of(record: JobRecord) -> MemoryKey:
    """The memory that a job's pictures went to. Raises the job's failure."""
    result = result_of_pictures(record)
    return MemoryKey(record.job.tenant_id, result.latent_space, result.memory_name)


def _schema() -> dict[str, Any]:
    properties, needs = flat_members(ReferenceFields)
    pictures = {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_PICTURES,
        "items": {"type": "string", "format": "binary", "minLength": 1},
        "description": "The pictures: PNG, JPEG or WebP files, in fields of that name or of the name `image`. Each is scaled and cut"
        " to a size of the model with the proportions nearest to its own.",
    }
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "image[]"],
        "dependentRequired": needs,
        "properties": {"image[]": pictures, **properties},
    }


REFERENCE_DOCS: dict[str, Any] = {
    "responses": {"200": {"headers": ALLOWANCE_DOCS}, "429": {"headers": EXHAUSTED_DOCS}},
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _schema()}}},
}
