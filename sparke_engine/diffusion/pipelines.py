"""Loading: a hub id, a local directory, or a built-in model becomes a pipeline or an engine."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from sparke_engine.diffusion.engine import ImageEngine, PipelineEngine
from sparke_engine.diffusion.families import served_pipelines
from sparke_engine.diffusion.hub import cached_first, how_to_get, hub_answers, is_on_hub
from sparke_engine.diffusion.library import default_preset, mark_preset
from sparke_engine.diffusion.loras import LoraFile, load_loras
from sparke_engine.diffusion.schedulers import adapter_for, supported_schedulers
from sparke_engine.diffusion.toy import ToyEngine
from sparke_engine.errors import InvalidArgument, ModelNotLoadable, UnsupportedPipeline, UnsupportedScheduler
from sparke_engine.guidance.presets import DiversityPreset, preset_named

DEMO = "builtin:demo"
TOY = "builtin:toy"
_FEW_STEPS = {
    "LCMScheduler",
    "TCDScheduler",
}  # read DDIM's configuration, though diffusers does not list them beside it
_STRAIGHT = {"cpu", "cuda", "mps"}  # diffusers takes these for a whole pipeline, and no number of a device
_NO_MODEL = (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, RuntimeError)
_WORDS = "aeiounrst"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_engine(  # noqa: PLR0913 - each is a choice of its own
    source: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    scheduler: str | None = None,
    preset: str | DiversityPreset = "default",
    preset_changes: Mapping[str, Any] | None = None,
    loras: Sequence[LoraFile] = (),
    device: str = "cpu",
) -> ImageEngine:
    """An engine from a hub id, a directory, `builtin:demo` or `builtin:toy`.

    `scheduler` is the class name of another scheduler of the same family; "default" is the preset of the model's kind.
    `preset_changes` are fields of the preset by name, in place of its own. `loras` are those that plans may name; one that
    does not fit the model fails the plans that name it (`engine.loras.broken`).
    Raises ModelNotLoadable, UnsupportedPipeline, UnsupportedScheduler, or InvalidArgument for an unknown preset or dtype
    and for LoRAs of a model that loads none.
    """
    if source == TOY:
        if loras:
            raise InvalidArgument(
                f"{TOY} has no weights that LoRAs could change: remove the {len(loras)} named for it"
            )
        return ToyEngine(replace(_resolve(preset, preset_named("toy")), **(preset_changes or {})))
    pipe = load_pipeline(source, revision=revision, dtype=dtype, scheduler=scheduler, device=device)
    chosen = replace(_resolve(preset, default_preset(pipe)), **(preset_changes or {}))
    return PipelineEngine(pipe, chosen, loras=load_loras(pipe, loras))


def kinds_preset(engine: ImageEngine) -> DiversityPreset:
    """The preset "default" of the kind of model that an engine runs, whatever preset it has."""
    if isinstance(engine, PipelineEngine):
        return default_preset(engine.pipeline)
    return preset_named("toy")


def load_demo_pipeline(device: str = "cpu", dtype: torch.dtype | str = torch.float32) -> Any:
    """The model that ships with the package, as a stock StableDiffusionPipeline; a dtype may be given by its name."""
    return load_pipeline(DEMO, dtype=dtype, device=device)


def load_pipeline(
    source: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str = torch.float32,
    scheduler: str | None = None,
    device: str = "cpu",
) -> Any:
    """A stock diffusers pipeline. Only safetensors are read, and no code from the source is run.

    Onto a device of `_STRAIGHT` weights go tensor by tensor as they are read, so the host never holds them all. Onto
    another they go part by part, once the host has all.

    Where the hub does not answer, what is in its cache is loaded unasked; what is not there is tried for all the same.
    """
    _check_device(device)
    place = str(demo_weights()) if source == DEMO else source
    load = partial(
        _load_whole,
        place,
        revision=revision,
        dtype=_dtype_of(dtype),
        use_safetensors=True,
        trust_remote_code=False,
        device_map=device if device in _STRAIGHT else None,
        **_left_out(Path(place)),
    )
    is_away = is_on_hub(place) and not hub_answers()
    try:
        pipe = cached_first(load) if is_away else load()
    except _NO_MODEL as error:
        why = f"{error}\n{how_to_get(source)}" if is_away else str(error)
        raise ModelNotLoadable(f"no model could be loaded from {source!r}: {why}") from error
    name = type(pipe).__name__
    if name not in served_pipelines():
        raise UnsupportedPipeline(f"{source!r} is a {name}; supported: {', '.join(served_pipelines())}")
    if scheduler is not None:
        _swap_scheduler(pipe, scheduler)
    adapter_for(pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    if source == DEMO:
        mark_preset(pipe, "demo")
    return pipe if device in _STRAIGHT else pipe.to(device)


def _dtype_of(dtype: torch.dtype | str) -> torch.dtype:
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise InvalidArgument(f"a model's dtype is one of {', '.join(DTYPES)}, got {dtype!r}")
    return found


def _check_device(device: str) -> None:
    try:
        torch.device(device)
    except RuntimeError as error:
        raise InvalidArgument(
            f"torch knows no device {device!r}: cpu, cuda, cuda:1 and mps are some"
        ) from error


def _load_whole(place: str, **asked: Any) -> Any:
    """What diffusers loads, with all that it is made of. OSError where files are missing.

    Of weights diffusers says so itself; but of no files transformers makes a tokenizer to which all words are the same.
    """
    from diffusers import DiffusionPipeline  # noqa: PLC0415 - two seconds that the toy can do without
    from transformers import PreTrainedTokenizerBase  # noqa: PLC0415 - likewise

    pipe = DiffusionPipeline.from_pretrained(place, **asked)
    for name, part in pipe.components.items():
        if (
            isinstance(part, PreTrainedTokenizerBase)
            and len({tuple(part.encode(one)) for one in _WORDS}) == 1
        ):
            raise OSError(f"{name} knows no words: its files are missing")
    return pipe


def demo_weights() -> Path:
    """The directory of the demo model within the installed package."""
    return Path(str(files("sparke_engine"))) / "demo" / "weights"


def _left_out(directory: Path) -> dict[str, None]:
    """The optional parts that a directory was saved without: Stable Diffusion 3 runs without its T5 encoder."""
    index = directory / "model_index.json"
    if not index.is_file():
        return {}
    saved = json.loads(index.read_text())
    optional = (
        ("text_encoder_3", "tokenizer_3") if saved.get("_class_name") == "StableDiffusion3Pipeline" else ()
    )
    return {part: None for part in optional if not any(saved.get(part, ()))}


def _resolve(preset: str | DiversityPreset, default: DiversityPreset) -> DiversityPreset:
    if isinstance(preset, DiversityPreset):
        return preset
    return default if preset == "default" else preset_named(preset)


def _swap_scheduler(pipe: Any, name: str) -> None:
    """Put the scheduler of that class, made from the old one's configuration, in its place."""
    import diffusers  # noqa: PLC0415 - loaded by now

    old = pipe.scheduler
    compatible = {type(old).__name__} | {cls.__name__ for cls in old.compatibles}
    if "DDIMScheduler" in compatible:
        compatible |= _FEW_STEPS
    possible = sorted(compatible & set(supported_schedulers()))
    if name not in possible:
        raise UnsupportedScheduler(
            f"this model's {type(old).__name__} cannot become {name!r}; possible: {', '.join(possible)}"
        )
    extra = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    try:
        pipe.scheduler = getattr(diffusers, name).from_config(old.config, **extra)
    except ImportError as error:
        raise UnsupportedScheduler(f"{name} needs a package that is not installed: {error}") from error
