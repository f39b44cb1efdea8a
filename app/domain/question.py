"""What a tenant asks of a memory that only a model can tell, and the answers. A question makes no images and changes nothing."""

from dataclasses import dataclass

from app.domain.ids import LatentSpace, MemoryName, ModelId


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """Which entries of a memory have the prompts nearest to this one; at most `limit`, and none below `min_similarity`.

    The model is one of the memory's latent space. `version` reads the memory as it was then.
    """

    model: ModelId
    memory: MemoryName
    prompt: str
    limit: int
    min_similarity: float | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Similar:
    """An entry, by its version, and the cosine of its prompt's embedding and the question's."""

    version: int
    similarity: float


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The nearest first; of equally near ones that of the lower version. `memory_version` is the version that was read."""

    found: tuple[Similar, ...]
    latent_space: LatentSpace
    memory_name: MemoryName
    memory_version: int
