"""The bodies that ask for images."""

import re
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.domain.ids import NAME_FORM
from app.domain.lora import MAX_LORAS, MAX_SCALE
from app.domain.request import MAX_SEED

MAX_PROMPT_CHARS = 4000
MAX_IMAGES = 10
MAX_PREVIEWS = 3
MAX_DEADLINE_S = 86_400
MAX_NUM_NEIGHBOURS = 65_536
MAX_ALSO = 4
_NAME_DOCS: dict[str, JsonValue] = {"pattern": NAME_FORM}
SIZE_FORM = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


def _shows_something(prompt: str) -> str:
    if not prompt.strip():
        raise PydanticCustomError("invalid_value", "the prompt must not be empty")
    return prompt


Prompt = Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)]
AskedPrompt = Annotated[Prompt, AfterValidator(_shows_something)]
MetadataName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Bandwidth = Annotated[float, Field(ge=0.01, le=10.0, allow_inf_nan=False)]
Ignored = Annotated[
    str | None, Field(max_length=1024, description="Accepted for compatibility; without effect.")
]


class WireModel(BaseModel):
    """A body from outside: no coercion between types, no unknown members."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class AlsoBody(WireModel):
    """Another memory of yours in the model's latent space, which is read and not written."""

    name: str = Field(description="Its name. It must hold something.", json_schema_extra=_NAME_DOCS)
    version: int | None = Field(
        default=None, ge=1, le=MAX_SEED, description="Read it as it was at this version (an answer's `also`)."
    )


class MemoryBody(WireModel):
    """Which memory guides the images and keeps them."""

    name: str | None = Field(
        default=None, description="The memory's name; `default` if absent.", json_schema_extra=_NAME_DOCS
    )
    read: bool | None = Field(default=None, description="Push away from what it holds (default true).")
    write: bool | None = Field(
        default=None, description="Keep the new images in it (default true; false where `version` is given)."
    )
    version: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="Read it as it was at this version: with the same seed, a replay.",
    )
    also: Annotated[list[AlsoBody], Field(max_length=MAX_ALSO)] | None = Field(
        default=None,
        description="Memories that are read together with it, as if they were one; an image that several hold counts once. They"
        " are read too where `read` is false.",
    )


class ReferenceBody(WireModel):
    """A memory that is not guided by prompts: all its images count, and they do so by a weight of its own."""

    reference: str = Field(
        description="The name of a memory of yours in the model's latent space. It must hold something.",
        json_schema_extra=_NAME_DOCS,
    )
    weight: float = Field(
        ge=0.0, le=1.0, allow_inf_nan=False, description="How strongly it counts; 0 is not at all."
    )
    version: int | None = Field(
        default=None,
        ge=1,
        le=MAX_SEED,
        description="Read it as it was at this version (an answer's `novelty_version` or `context_version`).",
    )


class DiversityBody(WireModel):
    """How far to push the images away from the tenant's past and from each other."""

    strength: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="0 is the plain model, but for novelty and context; absent: the model's default.",
    )
    memory: MemoryBody | None = Field(
        default=None, description="The memory to push away from and to remember in."
    )
    num_neighbours: int | None = Field(
        default=None,
        ge=1,
        le=MAX_NUM_NEIGHBOURS,
        description="At most so many entries of the memory take part.",
    )
    latent_bandwidth: Bandwidth | None = Field(default=None, description="Width of the kernel on images.")
    prompt_bandwidth: Bandwidth | None = Field(default=None, description="Width of the kernel on prompts.")
    novelty: ReferenceBody | None = Field(
        default=None, description="Lead away from a reference's images, whatever the strength is."
    )
    context: ReferenceBody | None = Field(
        default=None, description="Lead toward a reference's images, whatever the strength is."
    )


class LoraBody(WireModel):
    """A LoRA of the model, and how strongly it acts."""

    name: str = Field(description="One that `/v1/models` lists with the model.", json_schema_extra=_NAME_DOCS)
    scale: float | None = Field(
        default=None,
        ge=-MAX_SCALE,
        le=MAX_SCALE,
        allow_inf_nan=False,
        description="1 is as it was trained, 0 is none, below 0 leads the other way; absent: its default.",
    )


class ImagesBody(WireModel):
    """What shapes images: what the OpenAI images API takes, and the members of our own after it."""

    prompt: AskedPrompt = Field(
        description="What to show.",
        examples=["a red circle on a blue background"],
        json_schema_extra={"pattern": r"\S"},
    )
    model: str | None = Field(
        default=None, max_length=200, description="A model's id; the catalogue's first if absent."
    )
    n: int | None = Field(default=None, ge=1, le=MAX_IMAGES, description="How many images (default 1).")
    size: str | None = Field(
        default=None,
        max_length=40,
        description="`WIDTHxHEIGHT` in pixels, or `auto`.",
        json_schema_extra={"pattern": f"^(auto|{SIZE_FORM.pattern})$"},
    )
    output_format: Literal["png"] | None = Field(default=None, description="Images are PNG.")
    user: Ignored = None
    safety_identifier: Ignored = None
    quality: Ignored = None
    style: Ignored = None
    background: Ignored = None
    moderation: Ignored = None
    complexity: Ignored = None
    output_compression: int | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Accepted for compatibility; without effect: PNG loses nothing.",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="Image i has the seed `seed + i`; the server draws one if absent.",
    )
    negative_prompt: Prompt | None = Field(
        default=None, description="What not to show. Classifier-free guidance is then never relaxed."
    )
    steps: int | None = Field(default=None, ge=1, description="Denoising steps; absent: the model's default.")
    guidance_scale: float | None = Field(
        default=None,
        ge=0.0,
        allow_inf_nan=False,
        description="Classifier-free guidance; absent: the model's default. Diversity guidance may relax it where images are near.",
    )
    reproducible: bool | None = Field(
        default=None,
        description="Run in one fixed batch shape, so that a later replay is bit-equal (default false).",
    )
    diversity: DiversityBody | None = Field(
        default=None, description="How far the images are pushed away from the past and from each other."
    )
    loras: Annotated[list[LoraBody], Field(max_length=MAX_LORAS)] | None = Field(
        default=None,
        description="LoRAs of the model that change these images, each named once (default: none).",
    )


class GenerationBody(ImagesBody):
    """The body of `POST /v1/images/generations`."""

    response_format: Literal["b64_json", "url"] | None = Field(
        default=None, description="`b64_json` if absent."
    )
    stream: bool | None = Field(
        default=None, description="Answer with server-sent events, images inline (default false)."
    )
    partial_images: int | None = Field(
        default=None,
        ge=0,
        le=MAX_PREVIEWS,
        description="With `stream`: so many pictures of each image on its way (default 0); fewer in few steps.",
    )
    cancel_on_disconnect: bool | None = Field(
        default=None,
        description="Cancel the job where the client goes away before its answer (default false).",
    )

    @model_validator(mode="after")
    def _stream_is_inline(self) -> Self:
        if self.stream and self.response_format == "url":
            raise PydanticCustomError(
                "invalid_value",
                "a stream has its images inline: leave response_format out, or ask without stream",
            )
        return self


class JobBody(ImagesBody):
    """The body of `POST /v1/jobs`."""

    deadline_s: int | None = Field(
        default=None,
        ge=1,
        le=MAX_DEADLINE_S,
        description="It expires where no worker has begun it by then (default: a day).",
    )
    num_previews: int | None = Field(
        default=None,
        ge=0,
        le=MAX_PREVIEWS,
        description="So many pictures of each image on its way, among its events (default 0); fewer in few steps.",
    )
    metadata: Annotated[dict[MetadataName, MetadataValue], Field(max_length=16)] | None = Field(
        default=None, description="Up to 16 names and values of your own, shown with the job."
    )
