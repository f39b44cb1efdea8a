"""LoRAs on the wire: which of a model's a request chose, and how they are shown."""

from collections.abc import Sequence

from pydantic import BaseModel, Field

from app.domain.lora import LoraSelection, LoraSpec
from app.domain.model import ModelSpec
from app.errors import InvalidValue


class LoraAnswer(BaseModel):
    """A LoRA of a model."""

    name: str = Field(description="What a request names it by.")
    default_scale: float = Field(description="How strongly it acts where a request does not say.")


class LoraAskedAnswer(BaseModel):
    """A LoRA of a request."""

    name: str = Field(description="The LoRA's name.")
    scale: float = Field(description="How strongly it acts.")


def choose_loras(asked: Sequence[tuple[str, float | None]], spec: ModelSpec) -> tuple[LoraSelection, ...]:
    """The LoRAs of these names and scales, in the order of their names; one of scale 0 is none.

    InvalidValue for a name that the model does not have, which says what there is, and for one that comes twice.
    """
    known: dict[str, LoraSpec] = {lora.name: lora for lora in spec.loras}
    chosen: dict[str, LoraSelection] = {}
    for number, (name, scale) in enumerate(asked):
        lora = known.get(name)
        if lora is None:
            there = ", ".join(known) or "none"
            raise InvalidValue(
                f"model {spec.model_id} has no LoRA {name[:80]!r}; there are: {there}",
                param=f"loras.{number}.name",
            )
        if name in chosen:
            raise InvalidValue(
                f"the LoRA {name!r} is named twice: once is enough", param=f"loras.{number}.name"
            )
        chosen[name] = LoraSelection(lora.name, lora.default_scale if scale is None else scale)
    return tuple(chosen[name] for name in sorted(chosen) if chosen[name].scale != 0)


def describe_selection(lora: LoraSelection) -> LoraAskedAnswer:
    """The choice as a job shows it."""
    return LoraAskedAnswer(name=lora.name, scale=lora.scale)
