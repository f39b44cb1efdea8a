"""From the body of `POST /v1/references` to its fields and files."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Request
from pydantic import Field

from app.domain.ids import NAME_FORM
from app.http.bodies.generation_bodies import Prompt, WireModel
from app.http.forms.form_fields import read_fields
from app.http.forms.picture_form import PictureBounds, SentFile, receive_pictures

MAX_PICTURES = 16
_MEMBERS = {"image": "image", "image[]": "image"}


class ReferenceFields(WireModel):
    """The fields of `POST /v1/references` beside its files."""

    name: str = Field(
        description="The memory that the pictures go to; it is made where there is none. `diversity.novelty.reference`,"
        " `diversity.context.reference` and `diversity.memory.name` take it.",
        json_schema_extra={"pattern": NAME_FORM},
    )
    model: str | None = Field(
        default=None,
        max_length=200,
        description="Whose latent space it is in, which all models share that name it; the catalogue's first model if absent.",
    )
    prompt: Prompt | None = Field(
        default=None,
        description="What the pictures show. As a reference they count whatever it says; as `diversity.memory.name` they count"
        " for prompts near to it. Absent: the empty prompt.",
    )


@dataclass(frozen=True, slots=True)
class ReferenceForm:
    """What has come. Its files are there as long as the context of `receive_reference` lasts."""

    fields: ReferenceFields
    pictures: tuple[SentFile, ...]


@asynccontextmanager
async def receive_reference(
    request: Request, *, max_picture_bytes: int, timeout_s: float
) -> AsyncIterator[ReferenceForm]:
    """The form, once all of it has come and its fields are valid. Raises as `receive_pictures` does."""
    bounds = PictureBounds(_MEMBERS, {"image": MAX_PICTURES}, max_picture_bytes, timeout_s)
    async with receive_pictures(request, bounds) as form:
        fields = read_fields(form.fields, ReferenceFields)
        form.first("image")
        yield ReferenceForm(fields, form.files["image"])
