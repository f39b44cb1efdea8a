"""A diversity preset as an operator writes it in `models.toml`: what the engine's preset has, checked without the engine."""

import json
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Grid = tuple[Count, Count] | Literal["whole"]
TABLE = "[models.diversity_preset]"
WHOLE_PRESETS = frozenset(
    {"paper", "released"}
)  # the engine's that do not pool latents; a test holds it to that


@dataclass(frozen=True, slots=True)
class PresetSpec:
    """Members of a preset that a model has of its own; what is None is that of the preset `base`.

    `base` is the name of a preset, or `default`, that of the model's kind. `sparke_engine/guidance/presets.py` says what
    each member does. `grid` is (rows, columns), or `whole` for latents that are not pooled.
    """

    base: str = "default"
    mode: Literal["paper", "released", "denoised"] | None = None
    objective: Literal["rke", "vendi"] | None = None
    kernel: Literal["gaussian", "cosine"] | None = None
    conditional: bool | None = None
    grid: Grid | None = None
    eta: Positive | None = None
    strength_exponent: Positive | None = None
    window: Fraction | None = None
    relax: Share | None = None
    interval: Count | None = None
    kappa: Positive | None = None
    latent_bandwidth: Positive | None = None
    prompt_bandwidth: Positive | None = None
    power: Positive | None = None
    min_prompt_kernel: Share | None = None
    max_neighbours: Count | None = None
    max_spectral_entries: Count | None = None
    reference_eta: Positive | None = None
    reference_window: Fraction | None = None
    reference_bandwidth: Positive | None = None
    max_reference_entries: Count | None = None
    max_push: Positive | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """The members that are given, as the engine has them: a grid of None is the whole latents."""
        given = {
            member.name: getattr(self, member.name)
            for member in fields(self)
            if member.name != "base" and getattr(self, member.name) is not None
        }
        return given | ({"grid": None} if self.grid == "whole" else {})

    @property
    def grid_name(self) -> str | None:
        """What tells this grid from others in the name of a latent space; None where the base's holds."""
        if self.grid is None or self.grid == "whole":
            return self.grid
        return f"{self.grid[0]}x{self.grid[1]}"

    def to_toml(self) -> str:
        """The table, as it stands below a model in a catalogue or alone in a file that a model names."""
        given = {member.name: getattr(self, member.name) for member in fields(self)}
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in given.items() if value is not None]
        return "".join((f"{TABLE}\n", *lines))


def keeps_whole_latents(preset: str | PresetSpec) -> bool:
    """Whether features are latents that are not pooled, so that those of images of one size alone can be compared."""
    if isinstance(preset, str):
        return preset in WHOLE_PRESETS
    return preset.grid == "whole" or (preset.grid is None and preset.base in WHOLE_PRESETS)
