"""LoRAs of a pipeline: loaded once beside its weights, on for one run, off between runs.

While they are off, each layer that a LoRA may change calls the layer that it stands for and nothing else, so a run
without LoRAs has the bits of a pipeline that never had one. Only safetensors are read. A file that does not fit its
pipeline is taken out again, and asking for it is an error of that run alone.
"""

import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sparke_engine.diffusion.hub import cached_first, how_to_get, hub_answers
from sparke_engine.errors import InvalidArgument, LoraNotLoadable, ModelNotLoadable

SUFFIX = ".safetensors"
_PAIR = re.compile(r"lora(_down|\.down|_linear_layer\.down|[._]A)\b")  # a pair's first half, in all dialects


@dataclass(frozen=True)
class LoraFile:
    """A LoRA by the name that plans give it."""

    name: str
    path: Path


@dataclass(frozen=True)
class LoraScale:
    """A LoRA of a plan, and how strongly it acts: 1 is as it was trained."""

    name: str
    scale: float


@dataclass(frozen=True)
class Loras:
    """The LoRAs of one pipeline. `handles` are their names within it, `broken` says why others do not fit."""

    handles: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)

    def check(self, chosen: Sequence[LoraScale]) -> None:
        """Raise LoraNotLoadable for one whose file does not fit, InvalidArgument for what is no choice of these."""
        names = [one.name for one in chosen]
        for one in chosen:
            if one.name in self.broken:
                raise LoraNotLoadable(
                    f"the LoRA {one.name!r} does not fit this model: {self.broken[one.name]}", name=one.name
                )
            if one.name not in self.handles:
                there = ", ".join(self.handles) or "none"
                raise InvalidArgument(f"no LoRA {one.name!r} is loaded; there are: {there}")
            if not math.isfinite(one.scale):
                raise InvalidArgument(f"the scale of a LoRA is finite, got {one.scale} for {one.name!r}")
        if len(set(names)) < len(names):
            raise InvalidArgument(f"a LoRA is named once in a plan, got {', '.join(names)}")

    @contextmanager
    def on(self, pipe: Any, chosen: Sequence[LoraScale]) -> Iterator[None]:
        """Within the block the pipeline's denoiser and text encoders have these LoRAs, whatever happens in it."""
        if not chosen:
            yield
            return
        try:
            pipe.set_adapters([self.handles[one.name] for one in chosen], [one.scale for one in chosen])
            pipe.enable_lora()
            yield
        finally:
            pipe.disable_lora()


def find_lora(source: str, weight_name: str, revision: str | None = None) -> Path:
    """The file of a LoRA: a path (absolute, or one that begins with "."), or `weight_name` in such a folder or on the hub.

    Where the hub does not answer, what is in its cache is taken unasked.
    Raises InvalidArgument where a path leads nowhere, ModelNotLoadable where the hub does not give it.
    """
    if source.startswith((".", "/")):
        path = Path(source) if source.endswith(SUFFIX) else Path(source) / weight_name
        if not path.is_file():
            raise InvalidArgument(
                f"there is no file {path}: put it there, or correct its source or weight_name"
            )
        return path
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - local files can do without

    get, is_away = partial(hf_hub_download, source, weight_name, revision=revision), not hub_answers()
    try:
        return Path(cached_first(get) if is_away else get())
    except (OSError, ValueError) as error:
        why = f"{error}\n{how_to_get(source)}" if is_away else str(error)
        raise ModelNotLoadable(f"no LoRA {weight_name} could be had from {source!r}: {why}") from error


def load_loras(pipe: Any, files: Sequence[LoraFile]) -> Loras:
    """Load the files beside the pipeline's weights, all off. Those that do not fit are told of in `broken`.

    Raises InvalidArgument for a pipeline that loads no LoRAs, and what lack of memory raises.
    """
    if not files:
        return Loras()
    if not callable(getattr(pipe, "load_lora_weights", None)):
        raise InvalidArgument(
            f"a {type(pipe).__name__} loads no LoRA: remove the {len(files)} that are named for it"
        )
    handles: dict[str, str] = {}
    broken: dict[str, str] = {}
    with _quietly():
        for number, file in enumerate(files):
            handle = (
                f"sparke{number:04d}"  # names of diffusers and peft end where theirs begin: "lora", "default"
            )
            try:
                _load(pipe, file.path, handle)
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # noqa: BLE001 - what a file can be wrong with has no end
                broken[file.name] = _reason(error)
                pipe.delete_adapters([handle])
            else:
                handles[file.name] = handle
        pipe.disable_lora()
    return Loras(handles, broken)


def _load(pipe: Any, path: Path, handle: str) -> None:
    with safe_open(path, "pt") as opened:
        keys = list(opened.keys())
    if any("dora_scale" in key for key in keys):
        raise ValueError("the file holds magnitudes of DoRA, without which its LoRA is another one")
    num_given = sum(_PAIR.search(key) is not None for key in keys)
    if num_given == 0:
        raise ValueError("the file holds no layers of a LoRA")
    if getattr(pipe, "transformer", None) is not None:
        _check_layers(pipe, path)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=handle, use_safetensors=True)
    num_placed = sum(
        f"_A.{handle}" in name
        for part in pipe.get_list_adapters()
        for name, _ in getattr(pipe, part).named_parameters()
    )
    if num_placed < num_given:
        raise ValueError(f"{num_given - num_placed} of its {num_given} layers have no place in the model")


def _check_layers(pipe: Any, path: Path) -> None:
    """ValueError for a file under which FLUX's loader changes the model itself: it widens layers and replaces norms."""
    found = pipe.lora_state_dict(str(path.parent), weight_name=path.name, use_safetensors=True)
    layers = dict(pipe.transformer.named_modules())
    for key, tensor in (found[0] if isinstance(found, tuple) else found).items():
        if "lora" not in key and "alpha" not in key:
            raise ValueError(f"it holds {key}, which is no layer of a LoRA")
        name, is_first, _ = key.removeprefix("transformer.").partition(".lora_A.")
        width = getattr(layers.get(name), "in_features", None)
        if is_first and width is not None and tensor.shape[1] != width:
            raise ValueError(f"its layer {name} takes {tensor.shape[1]} numbers, and the model's {width}")


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


@contextmanager
def _quietly() -> Iterator[None]:
    """Loaders warn of parts that a LoRA leaves alone and of a second one beside the first; what matters is raised."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
