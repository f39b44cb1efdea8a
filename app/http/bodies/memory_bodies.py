"""What `/v1/memories` takes to make a memory: a new one, and a fork."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from app.domain.ids import NAME_FORM, LatentSpace, ModelId
from app.domain.model import ModelSpec
from app.errors import InvalidValue
from app.http.bodies.generation import find_model
from app.http.bodies.generation_bodies import WireModel
from app.http.bodies.memory_answers import MAX_AGE_S, MAX_ENTRIES, MAX_VERSION
from app.memory.shaping import Setting

MemoryNameField = Annotated[str, StringConstraints(pattern=NAME_FORM)]


class CreateBody(WireModel):
    """A memory that holds nothing yet, with its settings."""

    model_config = ConfigDict(json_schema_extra={"not": {"required": ["latent_space", "model"]}})

    name: MemoryNameField = Field(description="What `diversity.memory.name` takes.")
    latent_space: str | None = Field(default=None, description="That of some model of the catalogue.")
    model: str | None = Field(
        default=None, description="A model whose latent space it has; without either, the first one."
    )
    max_entries: int | None = Field(default=None, ge=1, le=MAX_ENTRIES, description="As PATCH takes it.")
    max_age_s: int | None = Field(default=None, ge=1, le=MAX_AGE_S, description="As PATCH takes it.")
    keep_prompts: bool = Field(default=False, description="Whether the prompts of images are kept with them.")
    frozen: bool = Field(default=False, description="Whether it takes nothing new.")

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if {"latent_space", "model"} <= self.model_fields_set:
            raise PydanticCustomError("invalid_value", "give one of latent_space, model, or neither")
        return self

    def space_in(self, catalogue: Mapping[ModelId, ModelSpec]) -> LatentSpace:
        """The latent space that is meant. Raises ModelNotFound and InvalidValue."""
        if self.latent_space is None:
            return find_model(self.model, catalogue).latent_space
        spaces = sorted({spec.latent_space for spec in catalogue.values()})
        if self.latent_space not in spaces:
            raise InvalidValue(
                f"no model of the catalogue has the latent space {self.latent_space[:80]!r}; there are: {', '.join(spaces)}",
                param="latent_space",
            )
        return LatentSpace(self.latent_space)

    def settings(self) -> dict[Setting, int | None]:
        """The settings as they are kept."""
        return {
            "frozen": 1 if self.frozen else None,
            "keep_prompts": 1 if self.keep_prompts else None,
            "max_entries": self.max_entries,
            "max_age_s": self.max_age_s,
        }


class ForkBody(WireModel):
    """A memory of another name with what this one held."""

    name: MemoryNameField = Field(description="The new memory's name.")
    version: int | None = Field(
        default=None, ge=0, le=MAX_VERSION, description="As it was then; the current one if absent."
    )
