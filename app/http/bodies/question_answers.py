"""What is asked of a memory that only a model can tell, and what is answered."""

from typing import Literal

from pydantic import BaseModel, Field

from app.domain.ids import MemoryName
from app.domain.model import ModelSpec
from app.domain.question import PreviewRequest, SearchRequest, StatsResult
from app.domain.request import MAX_SEED
from app.errors import InvalidValue
from app.http.bodies.generation import to_diversity
from app.http.bodies.generation_bodies import AskedPrompt, DiversityBody, MemoryBody, WireModel
from app.http.bodies.memory_answers import EntryAnswer

MAX_FOUND = 100
MAX_NAMED = 256
MAX_SAMPLE = 2000
_ABOUT_PROMPT = "Only its words count: nothing is made of it, and it is not kept."
_ABOUT_MODEL = "A model's id, of the memory's latent space; one that a worker has if absent."


class SearchBody(WireModel):
    """The body of `POST /v1/memories/{memory_id}/search`."""

    prompt: AskedPrompt = Field(
        description=_ABOUT_PROMPT, examples=["a red star"], json_schema_extra={"pattern": r"\S"}
    )
    limit: int | None = Field(
        default=None, ge=1, le=MAX_FOUND, description="At most so many entries (default 10)."
    )
    min_similarity: float | None = Field(
        default=None, ge=-1.0, le=1.0, allow_inf_nan=False, description="None below it (default: any)."
    )
    model: str | None = Field(default=None, max_length=200, description=_ABOUT_MODEL)
    version: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="The memory as it was at this version (default: as it is).",
    )

    def to_request(self, memory: MemoryName, spec: ModelSpec) -> SearchRequest:
        """What a worker is asked."""
        return SearchRequest(
            model=spec.model_id,
            memory=memory,
            prompt=self.prompt,
            limit=10 if self.limit is None else self.limit,
            min_similarity=self.min_similarity,
            version=self.version,
        )


class FoundAnswer(EntryAnswer):
    """An entry, and how near its prompt is."""

    similarity: float = Field(description="Cosine of the two prompts' embeddings; 1 for the same prompt.")


class FoundEntriesAnswer(BaseModel):
    """Entries, the one with the nearest prompt first; of equally near ones that of the lower version."""

    object: Literal["list"] = "list"
    data: list[FoundAnswer]
    model: str = Field(description="Whose understanding of prompts this is.")
    memory_version: int = Field(description="The version that was searched.")


class PreviewBody(WireModel):
    """The body of `POST /v1/memories/{memory_id}/preview`."""

    prompt: AskedPrompt = Field(
        description=_ABOUT_PROMPT, examples=["a red star"], json_schema_extra={"pattern": r"\S"}
    )
    model: str | None = Field(default=None, max_length=200, description=_ABOUT_MODEL)
    limit: int | None = Field(
        default=None, ge=1, le=MAX_NAMED, description="At most so many neighbours are named (default 20)."
    )
    diversity: DiversityBody | None = Field(
        default=None, description="As for images; `memory.name` is this memory's, and nothing is written."
    )

    def to_request(self, memory: MemoryName, spec: ModelSpec) -> PreviewRequest:
        """What a worker is asked. Raises InvalidValue for another memory, and what is wrong with the diversity."""
        given = self.diversity or DiversityBody()
        asked = given.memory or MemoryBody()
        if asked.name not in (None, memory):
            raise InvalidValue(
                f"diversity.memory.name must be {memory!r}, the memory of the path, or absent; got {asked.name!r}",
                param="diversity.memory.name",
            )
        if asked.also:
            raise InvalidValue(
                "a preview is of one memory, and its neighbours are named by its versions: leave also out",
                param="diversity.memory.also",
            )
        named = asked.model_copy(update={"name": memory})
        return PreviewRequest(
            model=spec.model_id,
            prompt=self.prompt,
            diversity=to_diversity(given.model_copy(update={"memory": named}), spec),
            limit=20 if self.limit is None else self.limit,
            steps=spec.default_steps,
        )


class GuidingAnswer(FoundAnswer):
    """A neighbour, and how much it would count."""

    prompt_kernel: float = Field(description="k_Y^p: 1 for the same prompt, towards 0 for unlike ones.")
    weight: float = Field(description="How many of those that qualify it stands for: 1 where all take part.")


class PreviewAnswer(BaseModel):
    """What would guide images of a prompt."""

    object: Literal["memory.preview"] = "memory.preview"
    model: str
    memory_version: int = Field(
        description="The version that was read: naming it in a request reads the same."
    )
    num_qualified: int = Field(description="Entries whose prompts are near enough.")
    num_neighbours: int = Field(description="Those of them that would take part; what images report.")
    expected_push: float = Field(
        description="About what an image alone would report as `push`, without references; above the truth for a"
        " single neighbour, of which nothing tells how alike images of its prompt are."
    )
    novelty_version: int | None = Field(description="Null where none was named.")
    context_version: int | None = Field(description="Null where none was named.")
    neighbours: list[GuidingAnswer] = Field(description="The nearest first; equally near ones by version.")


class GrowthAnswer(BaseModel):
    """When a memory had come to a version (Unix seconds)."""

    at: int = Field(description="When (Unix seconds).")
    version: int = Field(description="The version that it then had.")


class ScoresAnswer(BaseModel):
    """How diverse a sample of the entries is: effective numbers of images, from 1 to as many as there are."""

    model: str = Field(description="Whose kernels these are.")
    memory_version: int = Field(description="The version that was scored, and that drew the sample.")
    num_sampled: int = Field(description="How many entries were scored.")
    rke: float | None = Field(description="Null where the memory holds nothing; so are the others.")
    cond_rke: float | None = Field(description="The same beyond what the prompts differ in.")
    vendi: float | None = Field(
        description="By the entropy of von Neumann, where `rke` is by that of order 2."
    )
    cond_vendi: float | None = Field(description="The same beyond what the prompts differ in.")
    latent_bandwidth: float | None = Field(description="Null where the kernels are cosines.")
    prompt_bandwidth: float | None = Field(
        description="The width of the kernel on prompts; null where it is a cosine."
    )

    @classmethod
    def of(cls, model: str, result: StatsResult) -> "ScoresAnswer":
        """The answer of a worker."""
        shown = {name: getattr(result, name) for name in cls.model_fields if name != "model"}
        return cls(model=model, **shown)


class MemoryStatsAnswer(BaseModel):
    """A memory in numbers."""

    id: str
    object: Literal["memory.stats"] = "memory.stats"
    version: int = Field(description="The memory's version.")
    num_entries: int = Field(description="How many images it holds.")
    bytes: int = Field(description="What its entries take in Redis, about.")
    growth: list[GrowthAnswer] = Field(description="At most 64 points, by version.")
    scores: ScoresAnswer | None = Field(description="Null where no sample was asked for.")
