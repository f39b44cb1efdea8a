"""The catalogue of models as an operator writes it in `models.toml`."""

from dataclasses import dataclass
from typing import Literal

from app.domain.ids import LatentSpace, ModelId
from app.domain.lora import LoraSpec
from app.domain.preset import PresetSpec

Dtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """Which image sizes a model takes, in pixels: both sides within the limits and multiples of `multiple_px`."""

    default_width_px: int
    default_height_px: int
    min_px: int
    max_px: int
    multiple_px: int

    @property
    def has_one_size(self) -> bool:
        """Whether one side alone is within the limits."""
        return self.max_px // self.multiple_px == (self.min_px - 1) // self.multiple_px + 1


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model: where its weights are, how it is run, and which preset pushes it.

    `source` is a hub id, a local directory, or `builtin:demo` / `builtin:toy`. Models with one VAE, feature map and
    prompt encoder may share a `latent_space`, and so a memory. `diversity_preset` is the name of a preset, or members of
    the model's own. `loras` are those that requests may name.
    """

    model_id: ModelId
    source: str
    latent_space: LatentSpace
    size: SizeLimits
    revision: str | None = None
    dtype: Dtype = "float32"
    scheduler: str | None = None
    default_steps: int = 25
    max_steps: int = 100
    default_guidance_scale: float = 5.0
    max_guidance_scale: float = 30.0
    diversity_preset: str | PresetSpec = "default"
    default_strength: float = 0.5
    loras: tuple[LoraSpec, ...] = ()
