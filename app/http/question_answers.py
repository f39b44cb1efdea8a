"""What is asked of a memory that only a model can tell, and what is answered."""

from typing import Literal

from pydantic import BaseModel, Field

from app.domain.ids import MemoryName
from app.domain.model import ModelSpec
from app.domain.question import SearchRequest
from app.domain.request import MAX_SEED
from app.http.generation import AskedPrompt, WireModel
from app.http.memory_answers import EntryAnswer

MAX_FOUND = 100
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
