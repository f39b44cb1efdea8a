"""What the endpoints answer with: the OpenAI API's shapes, and members of our own beside them."""

import re
from typing import Literal

from pydantic import BaseModel, Field

from app.domain.file import StoredFile
from app.domain.model import ModelSpec
from app.domain.request import EditKind, GenerationRequest
from app.domain.result import GeneratedImage
from app.http.bodies.generation import describe_sizes
from app.http.bodies.loras import LoraAnswer
from app.jobs.types import LoadStage

_WORD = re.compile(r"\w+|[^\w\s]")
_PATCH_PX = 16


class DiversityAnswer(BaseModel):
    """How the memory shaped an image."""

    num_neighbours: int = Field(description="How many entries of the memory took part.")
    nearest_similarity: float | None = Field(
        description="Kernel value of the nearest of them, 0 (far) to 1 (equal); null without any."
    )
    push: float = Field(
        description="Size of the pushes relative to the norm of the latents, mean over the steps; 0 at strength 0 without references."
    )


class ImageAnswer(BaseModel):
    """One image, as `b64_json` or as `url`."""

    b64_json: str | None = Field(
        default=None, description="The PNG file in base64; null where there is a `url`."
    )
    url: str | None = Field(default=None, description="Signed; it works without a key until it expires.")
    seed: int = Field(
        description="The seed of its noise: with it and the version of the memory it is made again."
    )
    id: str
    diversity: DiversityAnswer


class TextAndImageTokens(BaseModel):
    """Tokens by kind."""

    text_tokens: int = Field(description="Words and marks of prompts.")
    image_tokens: int = Field(description="Squares of 16 px of images.")


class Usage(BaseModel):
    """Counts in the form of the OpenAI API: text tokens are words and marks, image tokens squares of 16 px."""

    input_tokens: int = Field(description="What was given: the prompts, and the image of an edit.")
    input_tokens_details: TextAndImageTokens
    output_tokens: int = Field(description="What was made: squares of 16 px of all images.")
    output_tokens_details: TextAndImageTokens
    total_tokens: int = Field(description="Both together.")


class ReadAnswer(BaseModel):
    """A memory that was read, and its version then."""

    name: str = Field(description="The name of the memory.")
    version: int = Field(description="The version that was read.")


class GenerationAnswer(BaseModel):
    """The images of one request, in order."""

    created: int = Field(description="When the request came (Unix seconds).")
    data: list[ImageAnswer]
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png"] = "png"
    size: str
    usage: Usage
    model: str
    memory_version: int = Field(
        description="The version that was read; `diversity.memory.version` replays it."
    )
    also: list[ReadAnswer] | None = Field(
        default=None,
        description="The memories that were read together with it, as `diversity.memory.also` replays them.",
    )
    novelty_version: int | None = Field(
        default=None, description="The version of novelty's reference that was read; null without novelty."
    )
    context_version: int | None = Field(
        default=None, description="The version of context's reference that was read; null without context."
    )


class SizesAnswer(BaseModel):
    """Which sizes a model takes."""

    description: str = Field(description="All of it in words.")
    default: str = Field(description="The size where a request says none or `auto`.")
    min_px: int = Field(description="The least width and height in pixels.")
    max_px: int = Field(description="The greatest width and height in pixels.")
    multiple_px: int = Field(description="Width and height are multiples of so many pixels.")


class DefaultsAnswer(BaseModel):
    """What the members of a request are where they are absent, and how far they go."""

    steps: int = Field(description="Steps of denoising.")
    max_steps: int = Field(description="The most steps that a request may have.")
    guidance_scale: float = Field(description="The scale of classifier-free guidance.")
    max_guidance_scale: float = Field(description="The greatest scale that a request may have.")
    strength: float = Field(description="`diversity.strength`, 0 to 1.")


class ModelAnswer(BaseModel):
    """A model in the catalogue."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Since when this server has offered it (Unix seconds).")
    owned_by: Literal["sparke"] = Field(
        default="sparke", description="Always so; clients of the OpenAI API look for it."
    )
    ready: bool = Field(description="Whether a worker has it loaded now.")
    latent_space: str = Field(description="Models with the same one share their memories.")
    edits: list[EditKind] = Field(
        description="What `/v1/images/edits` takes with it: an `image` alone, an image and a `mask`; nothing where it is not ready."
    )
    sizes: SizesAnswer
    defaults: DefaultsAnswer
    loras: list[LoraAnswer] = Field(description="Those that `loras` of a request may name.")


class ModelsAnswer(BaseModel):
    """All models in the catalogue."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class FileAnswer(BaseModel):
    """A file that is there."""

    id: str
    object: Literal["file"] = "file"
    bytes: int = Field(description="Its size.")
    created_at: int = Field(description="When its upload began (Unix seconds).")
    expires_at: int = Field(description="When it goes by itself (Unix seconds).")
    filename: str = Field(description="The name that it was sent with, or that its batch gave it.")
    purpose: Literal["batch", "batch_output"] = Field(
        description="`batch`: sent, for a batch; `batch_output`: made by one."
    )
    status: Literal["processed"] = Field(
        default="processed", description="Always so: a batch says what is wrong with its lines."
    )


class FilesAnswer(BaseModel):
    """Some files in order."""

    object: Literal["list"] = "list"
    data: list[FileAnswer]
    first_id: str | None
    last_id: str | None = Field(description="What `after` takes for the next ones.")
    has_more: bool


class FileDeletedAnswer(BaseModel):
    """A file that was there and is no more."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class ErrorMember(BaseModel):
    """The error as the OpenAI API gives it."""

    message: str = Field(description="What was expected, what was found and often what to do.")
    type: str = Field(description="The kind of error, as the OpenAI API has them.")
    param: str | None = Field(description="The member at fault; null where it is none.")
    code: str = Field(description="What a program goes by; it stays the same.")


class WorkerCounts(BaseModel):
    """How many workers are in each phase of their lives."""

    loading: int = Field(description="Workers that load models.")
    ready: int = Field(description="Workers that take jobs.")
    draining: int = Field(description="Workers that end what they have and take no more.")


class ReadyAnswer(BaseModel):
    """Images can be made."""

    status: Literal["ok"] = Field(default="ok", description="Always so.")
    state: Literal["ready"] = Field(
        default="ready", description="Always so; while no images can be made, see the answer 503."
    )
    workers: WorkerCounts


class LiveAnswer(BaseModel):
    """The process answers."""

    status: Literal["ok"] = Field(default="ok", description="Always so.")


class Problem(BaseModel):
    """Every error: the members of RFC 9457, and `error` for clients of the OpenAI API."""

    type: str = Field(description="A URN of the code.")
    title: str = Field(description="The status in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="The same as `error.message`.")
    instance: str = Field(description="A URN of the request's id.")
    error: ErrorMember


class LoadingAnswer(BaseModel):
    """How far a model is. Bytes are there while it is downloaded; the total grows while files are found."""

    stage: LoadStage = Field(
        description="Where it is: `waiting` for its turn, then the others in this order."
    )
    done_bytes: int | None = Field(
        default=None, description="Bytes that have come; absent where nothing is downloaded."
    )
    total_bytes: int | None = Field(default=None, description="Bytes of all files found so far.")


class NotReady(Problem):
    """Why no images can be made now."""

    state: Literal["store_unavailable", "no_worker", "loading", "stopping"] = Field(
        description="What is missing."
    )
    workers: WorkerCounts | None = Field(default=None, description="Absent where Redis does not answer.")
    models: dict[str, LoadingAnswer] | None = Field(
        default=None,
        description="While models are loaded: how far the worker is that has come farthest with each.",
    )


def describe_image(image: GeneratedImage, **content: str) -> ImageAnswer:
    """One image of the result with its `b64_json` or `url`."""
    shaped = DiversityAnswer(
        num_neighbours=image.num_neighbours, nearest_similarity=image.nearest_similarity, push=image.push
    )
    return ImageAnswer(seed=image.seed, id=image.image_id, diversity=shaped, **content)


def describe_file(file: StoredFile) -> FileAnswer:
    """The file as `/v1/files` shows it."""
    return FileAnswer(
        id=file.file_id,
        bytes=file.size_bytes,
        created_at=file.created_at_ms // 1000,
        expires_at=file.expires_at_ms // 1000,
        filename=file.filename,
        purpose=file.purpose.value,
    )


def describe_model(spec: ModelSpec, *, created_s: int, edits: frozenset[EditKind] | None) -> ModelAnswer:
    """The model as `/v1/models` shows it. `edits`: how it can edit, where a worker is ready that has it; else None."""
    size = spec.size
    return ModelAnswer(
        id=spec.model_id,
        created=created_s,
        ready=edits is not None,
        latent_space=spec.latent_space,
        edits=sorted(edits or ()),
        sizes=SizesAnswer(
            description=describe_sizes(size),
            default=f"{size.default_width_px}x{size.default_height_px}",
            min_px=size.min_px,
            max_px=size.max_px,
            multiple_px=size.multiple_px,
        ),
        defaults=DefaultsAnswer(
            steps=spec.default_steps,
            max_steps=spec.max_steps,
            guidance_scale=spec.default_guidance_scale,
            max_guidance_scale=spec.max_guidance_scale,
            strength=spec.default_strength,
        ),
        loras=[LoraAnswer(name=lora.name, default_scale=lora.default_scale) for lora in spec.loras],
    )


def count_usage(request: GenerationRequest) -> Usage:
    """Words and marks in, squares of 16×16 px out (a side's last, cut one counts). The API has no tokenizer.

    The picture of an edit is counted once, as squares of the size that it has there.
    """
    text = len(_WORD.findall(request.prompt)) + len(_WORD.findall(request.negative_prompt))
    squares = -(-request.width_px // _PATCH_PX) * -(-request.height_px // _PATCH_PX)
    images = request.num_images * squares
    given = 0 if request.edit is None else squares
    return Usage(
        input_tokens=text + given,
        input_tokens_details=TextAndImageTokens(text_tokens=text, image_tokens=given),
        output_tokens=images,
        output_tokens_details=TextAndImageTokens(text_tokens=0, image_tokens=images),
        total_tokens=text + given + images,
    )
