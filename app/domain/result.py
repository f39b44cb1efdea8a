"""What a job ended with."""

from dataclasses import dataclass

from app.domain.ids import ImageId, LatentSpace, MemoryName


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """One image: where it lies, and how the memory shaped it.

    `nearest_similarity` is the largest latent kernel value k_Z to a neighbour at the end (None without neighbours);
    `push` the mean over the steps of the push relative to the norm of the latents (0 at strength 0
    without references).
    """

    image_id: ImageId
    seed: int
    storage_key: str
    size_bytes: int
    num_neighbours: int
    nearest_similarity: float | None
    push: float


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """All images of a job, in order. `memory_version` is the version that was *read*: naming it replays the job.

    So are `also_versions`, of the memories that were read together with it, in their order, and `novelty_version` and
    `context_version`, of the references; None where the request named none.
    """

    images: tuple[GeneratedImage, ...]
    latent_space: LatentSpace
    memory_name: MemoryName
    memory_version: int
    novelty_version: int | None = None
    context_version: int | None = None
    also_versions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed: a stable code, a message for the tenant, and the request's member at fault, if one is."""

    code: str
    message: str
    param: str | None = None
