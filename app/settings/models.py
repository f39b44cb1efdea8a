"""What a worker serves, on which device, in batches of which size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, Field, field_validator
from pydantic_settings import NoDecode

from app.domain.ids import ModelId, parse_model_id
from app.errors import InvalidId

_DEVICE = r"(auto|cpu|mps|cuda(:\d+)?)"


class Models(BaseModel):
    """Models and the device."""

    READ_BY: ClassVar[Mapping[str, str]] = {
        "": "workers",
        "models_file": "API, workers",
        "models": "serve, workers",
        "device": "serve, workers",
    }

    models_file: Path | None = Field(None, description="Catalogue of models. None: the packaged demo model.")
    models: Annotated[tuple[ModelId, ...], NoDecode] = Field(
        (), description="Models this worker serves, separated by commas. Empty: all of the catalogue."
    )
    device: str = Field(
        "auto",
        pattern=rf"^{_DEVICE}( *, *{_DEVICE})*$",
        description="auto, cpu, mps, cuda or cuda:N. Of several, separated by commas, `serve` runs a worker on each.",
    )
    torch_threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads of a worker's torch. None: torch's own choice."
    )
    warm_up: bool = Field(
        True,
        description="Whether a worker makes one image of each model, and forgets it, before it is ready.",
    )
    max_batch_images: int = Field(
        16,
        ge=1,
        le=256,
        description="Most images in one device batch; a worker that runs out of memory learns to take fewer.",
    )
    batch_window_ms: int = Field(20, ge=0, le=1000, description="How long the batcher waits for company.")

    @property
    def devices(self) -> tuple[str, ...]:
        """Each device that `device` names."""
        return _names(self.device)

    @field_validator("device")
    @classmethod
    def _check_devices(cls, value: str) -> str:
        names = ["cuda:0" if name == "cuda" else name for name in _names(value)]
        if len(names) > 1 and "auto" in names:
            raise ValueError("auto stands alone; name each of several devices")
        for name in names:
            if name != "cpu" and names.count(name) > 1:
                raise ValueError(f"{name} is named twice, and has one worker")
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _split_models(cls, value: object) -> object:
        if isinstance(value, str):
            value = tuple(name for name in _names(value) if name)
        if not isinstance(value, tuple | list):
            return value
        try:
            return tuple(parse_model_id(str(part)) for part in value)
        except InvalidId as error:
            raise ValueError(error.message) from error


def _names(value: str) -> tuple[str, ...]:
    """What commas divide."""
    return tuple(name.strip() for name in value.split(","))
