"""What a tenant asks of a memory that only a model can tell, and the answers. A question makes no images and changes nothing."""

from dataclasses import dataclass

from app.domain.ids import LatentSpace, MemoryName, ModelId
from app.domain.request import Diversity


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


@dataclass(frozen=True, slots=True)
class PreviewRequest:
    """What would guide images of a prompt, were they asked for with this diversity; the nearest `limit` are told."""

    model: ModelId
    prompt: str
    diversity: Diversity
    limit: int
    steps: int


@dataclass(frozen=True, slots=True)
class Guiding:
    """A neighbour: how near its prompt is, the value k_Y^p of that, and how many entries it stands for."""

    version: int
    similarity: float
    prompt_kernel: float
    weight: float


@dataclass(frozen=True, slots=True)
class PreviewResult:
    """All neighbours are counted, the nearest are named. `expected_push` is an estimate of what an image would report."""

    num_qualified: int
    num_neighbours: int
    neighbours: tuple[Guiding, ...]
    expected_push: float
    latent_space: LatentSpace
    memory_name: MemoryName
    memory_version: int
    novelty_version: int | None = None
    context_version: int | None = None


@dataclass(frozen=True, slots=True)
class StatsRequest:
    """How diverse a memory is, by a sample of at most so many of its entries."""

    model: ModelId
    memory: MemoryName
    sample: int


@dataclass(frozen=True, slots=True)
class StatsResult:
    """Scores of the `num_sampled` of `num_entries` entries that a version drew; None where the memory holds nothing.

    A bandwidth of None is that of a cosine kernel, which has none.
    """

    num_entries: int
    num_sampled: int
    rke: float | None
    cond_rke: float | None
    vendi: float | None
    cond_vendi: float | None
    latent_bandwidth: float | None
    prompt_bandwidth: float | None
    latent_space: LatentSpace
    memory_name: MemoryName
    memory_version: int
