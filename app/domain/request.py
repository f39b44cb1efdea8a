"""What a tenant asks for. A value of these types is valid for ever after: the edge has checked it."""

from dataclasses import dataclass, field
from typing import Literal

from app.domain.ids import DEFAULT_MEMORY, MemoryName, ModelId
from app.domain.lora import LoraSelection

MAX_SEED = 2**53 - 1  # exact in JSON numbers of every client

EditKind = Literal["image", "mask"]  # all of a picture is repainted, or what a mask marks


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """A memory that is read and not written. `version` reads it as it was then."""

    name: MemoryName
    version: int | None = None


@dataclass(frozen=True, slots=True)
class MemorySelection:
    """Which memory guides and keeps the images. `version` reads it as it was then (a replay).

    `also` are read together with it, as if all their entries were in one; they are read too where `read` is false.
    """

    name: MemoryName = DEFAULT_MEMORY
    read: bool = True
    write: bool = True
    version: int | None = None
    also: tuple[MemoryReading, ...] = ()


@dataclass(frozen=True, slots=True)
class ReferenceSelection:
    """A memory as a reference, and how strongly its images count, 0 to 1. `version` reads it as it was then."""

    name: MemoryName
    weight: float
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Diversity:
    """How strongly to push away from the past. Strength 0 without references is bitwise the stock pipeline.

    `novelty` leads away from its reference and `context` toward it, whatever the strength and the prompts are.
    A bandwidth or number of None is the preset's.
    """

    strength: float
    memory: MemorySelection = field(default_factory=MemorySelection)
    num_neighbours: int | None = None
    latent_bandwidth: float | None = None
    prompt_bandwidth: float | None = None
    novelty: ReferenceSelection | None = None
    context: ReferenceSelection | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """A picture that the images begin with, and how much of it is given up, in (0, 1].

    Picture and mask lie in the image store under their job's name (`app.images.store.picture_key`), of the request's
    size. The digests are those of the files as they were sent; without a mask all of the picture is repainted.
    """

    strength: float
    image_sha256: str
    mask_sha256: str | None = None

    @property
    def kind(self) -> EditKind:
        """What is repainted."""
        return "image" if self.mask_sha256 is None else "mask"


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request's images: they share a prompt and push each other apart. Image i has the seed `seed + i`.

    `loras` are in the order of their names, whatever order they were asked for in: sums of floats depend on it.
    """

    model: ModelId
    prompt: str
    negative_prompt: str
    num_images: int
    width_px: int
    height_px: int
    steps: int
    guidance_scale: float
    seed: int
    diversity: Diversity
    reproducible: bool = False
    loras: tuple[LoraSelection, ...] = ()
    edit: Edit | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image, in order."""
        return tuple((self.seed + index) % (MAX_SEED + 1) for index in range(self.num_images))
