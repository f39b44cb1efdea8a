"""A LoRA of a model: as an operator names it in `models.toml`, and as a request chooses it."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from app.domain.ids import LoraName

MAX_LORAS = 4
MAX_SCALE = 4.0
SUFFIX = ".safetensors"
DEFAULT_WEIGHT_NAME = "pytorch_lora_weights.safetensors"  # what diffusers and its training scripts write
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_WEIGHT_NAME = re.compile(r"[\w-][\w. -]*(/[\w-][\w. -]*)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """One LoRA: the name that requests give it, where its file is, and how strongly it acts unless they say.

    `source` is a file, a folder (both absolute, or relative to the catalogue and begun with "."), or a hub id; in the last
    two `weight_name` names the file.
    """

    name: LoraName
    source: str
    weight_name: str | None = None
    revision: str | None = None
    default_scale: float = 1.0

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, and not on the hub."""
        return self.source.startswith((".", "/"))

    @property
    def file_name(self) -> str:
        """Its file within its source."""
        return self.weight_name or DEFAULT_WEIGHT_NAME

    @property
    def local_path(self) -> Path | None:
        """Where its file should lie on this machine; None for one of the hub."""
        if not self.is_local:
            return None
        return Path(self.source) if self.source.endswith(SUFFIX) else Path(self.source) / self.file_name

    @property
    def fault(self) -> str | None:
        """What is wrong with it and what to do, where anything is. Whether its file is there only a worker sees."""
        is_file = self.source.endswith(SUFFIX)
        if not self.is_local and (is_file or not _HUB_ID.fullmatch(self.source)):
            return f"source is a hub id (owner/name), or a path that begins with / or ., got {self.source!r}"
        if is_file and self.weight_name is not None:
            return "source names a file already: leave weight_name out"
        if not self.file_name.endswith(SUFFIX) or not _WEIGHT_NAME.fullmatch(self.file_name):
            return f"weight_name is the name of a file *{SUFFIX} within its source, got {self.weight_name!r}"
        if self.is_local and self.revision is not None:
            return "revision is for the hub: leave it out beside a path"
        if not (math.isfinite(self.default_scale) and abs(self.default_scale) <= MAX_SCALE):
            return f"default_scale is -{MAX_SCALE:g} to {MAX_SCALE:g}, got {self.default_scale}"
        return None


@dataclass(frozen=True, slots=True)
class LoraSelection:
    """A LoRA that a request chose. Scale 1 is as it was trained; a negative one leads the other way."""

    name: LoraName
    scale: float
