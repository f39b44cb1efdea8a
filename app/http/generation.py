"""The bodies that ask for images, and the valid request that they become."""

import re
from collections.abc import Callable, Mapping, Sequence
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

from app.domain.ids import DEFAULT_MEMORY, NAME_FORM, MemoryName, ModelId, parse_memory_name
from app.domain.lora import MAX_LORAS, MAX_SCALE
from app.domain.model import ModelSpec, SizeLimits
from app.domain.request import (
    MAX_SEED,
    Diversity,
    GenerationRequest,
    MemoryReading,
    MemorySelection,
    ReferenceSelection,
)
from app.errors import InvalidId, InvalidRequest, InvalidValue, ModelNotFound
from app.http.loras import choose_loras

MAX_PROMPT_CHARS = 4000
MAX_IMAGES = 10
MAX_PREVIEWS = 3
MAX_DEADLINE_S = 86_400
MAX_NUM_NEIGHBOURS = 65_536
MAX_ALSO = 4
_NAME_DOCS: dict[str, JsonValue] = {"pattern": NAME_FORM}
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


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
    memory: MemoryBody | None = None
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
        json_schema_extra={"pattern": f"^(auto|{_SIZE.pattern})$"},
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
    diversity: DiversityBody | None = None
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


def find_model(model: str | None, catalogue: Mapping[ModelId, ModelSpec]) -> ModelSpec:
    """The model asked for, or the catalogue's first; ModelNotFound says which there are."""
    if model is None:
        return next(iter(catalogue.values()))
    spec = catalogue.get(ModelId(model))
    if spec is None:
        there = ", ".join(catalogue)
        raise ModelNotFound(f"no model {model[:80]!r}; there are: {there}", param="model")
    return spec


def to_request(body: ImagesBody, spec: ModelSpec, randomness: Callable[[int], bytes]) -> GenerationRequest:
    """The body with the model's defaults filled in and held against its limits; `randomness` gives an absent seed."""
    width_px, height_px = parse_size(body.size, spec.size)
    steps = spec.default_steps if body.steps is None else body.steps
    if steps > spec.max_steps:
        raise InvalidValue(f"steps must be 1 to {spec.max_steps} for this model, got {steps}", param="steps")
    scale = spec.default_guidance_scale if body.guidance_scale is None else body.guidance_scale
    if scale > spec.max_guidance_scale:
        raise InvalidValue(
            f"guidance_scale must be 0 to {spec.max_guidance_scale:g} for this model, got {scale:g}",
            param="guidance_scale",
        )
    seed = int.from_bytes(randomness(8), "big") % (MAX_SEED + 1) if body.seed is None else body.seed
    return GenerationRequest(
        model=spec.model_id,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or "",
        num_images=1 if body.n is None else body.n,
        width_px=width_px,
        height_px=height_px,
        steps=steps,
        guidance_scale=scale,
        seed=seed,
        diversity=to_diversity(body.diversity or DiversityBody(), spec),
        reproducible=bool(body.reproducible),
        loras=choose_loras([(lora.name, lora.scale) for lora in body.loras or ()], spec),
    )


def describe_sizes(limits: SizeLimits) -> str:
    """The sizes that a model takes, in words."""
    if limits.min_px == limits.max_px:
        return f"{limits.min_px}x{limits.max_px} only"
    return (
        f"WIDTHxHEIGHT with both sides from {limits.min_px} to {limits.max_px} px in multiples of"
        f" {limits.multiple_px}, or auto ({limits.default_width_px}x{limits.default_height_px})"
    )


def is_allowed_size(size_px: tuple[int, int], limits: SizeLimits) -> bool:
    """Whether a model makes images of that width and height."""
    return all(limits.min_px <= side <= limits.max_px and side % limits.multiple_px == 0 for side in size_px)


def parse_size(size: str | None, limits: SizeLimits) -> tuple[int, int]:
    """Width and height of `WIDTHxHEIGHT`, the model's own where it is `auto` or absent. Raises InvalidValue."""
    if size is None or size == "auto":
        return limits.default_width_px, limits.default_height_px
    found = _SIZE.fullmatch(size)
    sides = (int(found[1]), int(found[2])) if found else (0, 0)
    if not is_allowed_size(sides, limits):
        raise InvalidValue(f"size must be {describe_sizes(limits)}; got {size!r}", param="size")
    return sides


def to_diversity(body: DiversityBody, spec: ModelSpec) -> Diversity:
    """The body's diversity with the model's defaults. Raises InvalidRequest and InvalidId."""
    novelty = _to_reference(body.novelty, "diversity.novelty")
    context = _to_reference(body.context, "diversity.context")
    if novelty is not None and context is not None and novelty.name == context.name:
        raise InvalidRequest(
            f"novelty and context cannot both have the reference {context.name!r}: it would lead away and back",
            param="diversity.context.reference",
        )
    return Diversity(
        strength=spec.default_strength if body.strength is None else body.strength,
        memory=_to_memory(body.memory or MemoryBody()),
        num_neighbours=body.num_neighbours,
        latent_bandwidth=body.latent_bandwidth,
        prompt_bandwidth=body.prompt_bandwidth,
        novelty=novelty,
        context=context,
    )


def _to_reference(body: ReferenceBody | None, member: str) -> ReferenceSelection | None:
    if body is None:
        return None
    return ReferenceSelection(
        to_memory_name(body.reference, f"{member}.reference"), body.weight, body.version
    )


def _to_memory(body: MemoryBody) -> MemorySelection:
    read = body.read is not False
    if body.version is not None and not read:
        raise InvalidRequest(
            "a version is for reading: leave it out, or let read be true", param="diversity.memory.version"
        )
    name = DEFAULT_MEMORY if body.name is None else to_memory_name(body.name, "diversity.memory.name")
    write = body.version is None if body.write is None else body.write
    return MemorySelection(name, read, write, body.version, _to_readings(body.also or (), name))


def _to_readings(also: Sequence[AlsoBody], own: MemoryName) -> tuple[MemoryReading, ...]:
    found: list[MemoryReading] = []
    for index, body in enumerate(also):
        member = f"diversity.memory.also.{index}.name"
        name = to_memory_name(body.name, member)
        if name == own or name in (other.name for other in found):
            raise InvalidRequest(f"each memory is read once, and {name!r} is named twice", param=member)
        found.append(MemoryReading(name, body.version))
    return tuple(found)


def to_memory_name(text: str, member: str) -> MemoryName:
    """A memory's name that a request's `member` has. Raises InvalidId."""
    try:
        return parse_memory_name(text)
    except InvalidId as error:
        raise InvalidId(error.message, param=member) from error
