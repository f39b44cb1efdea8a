"""From the body of `POST /v1/images/edits` to its fields and files."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Request
from pydantic import Field

from app.http.bodies.generation_bodies import GenerationBody, Ignored
from app.http.forms.form_fields import read_fields
from app.http.forms.picture_form import PictureBounds, SentFile, receive_pictures

_MEMBERS = {"image": "image", "image[]": "image", "mask": "mask"}
_MOST = {"image": 1, "mask": 1}


class EditBody(GenerationBody):
    """The fields of `POST /v1/images/edits` beside its files."""

    input_fidelity: Ignored = None
    edit_strength: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="How much of the image is given up to noise, and so how many of the steps are run: little at 0.2, all of"
        " it at 1. Absent: 0.8, and 1 with a mask. Not to be confused with `diversity[strength]`.",
    )


@dataclass(frozen=True, slots=True)
class EditForm:
    """What has come. Its files are there as long as the context of `receive_edit` lasts."""

    body: EditBody
    image: SentFile
    mask: SentFile | None


@asynccontextmanager
async def receive_edit(
    request: Request, *, max_picture_bytes: int, timeout_s: float
) -> AsyncIterator[EditForm]:
    """The form, once all of it has come and its fields are valid. Raises as `receive_pictures` does."""
    bounds = PictureBounds(_MEMBERS, _MOST, max_picture_bytes, timeout_s)
    async with receive_pictures(request, bounds) as form:
        body = read_fields(form.fields, EditBody)
        mask = form.files["mask"]
        yield EditForm(body, form.first("image"), mask[0] if mask else None)
