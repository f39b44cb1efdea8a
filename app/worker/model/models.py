"""The models that this worker serves: chosen from the catalogue, loaded on the device thread."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog
import torch
from torch import Tensor

from app.domain.ids import LatentSpace, ModelId
from app.domain.model import ModelSpec
from app.errors import ConfigurationError, Unavailable
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import span
from app.worker.memory.memory_cache import Dimensions
from app.worker.model.device import DeviceThread
from sparke_engine.diffusion.engine import ImageEngine, PipelineEngine
from sparke_engine.diffusion.loras import LoraFile, find_lora
from sparke_engine.diffusion.pipelines import kinds_preset, load_engine
from sparke_engine.errors import InvalidArgument
from sparke_engine.guidance.presets import preset_named

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A catalogue entry and the engine that runs it."""

    spec: ModelSpec
    engine: ImageEngine

    @property
    def dimensions(self) -> Dimensions:
        """The lengths of its memory entries' vectors."""
        return Dimensions(self.engine.feature_dim, self.engine.prompt_dim)


def embed_on_device(model: LoadedModel, prompt: str) -> Tensor:
    """A prompt's embedding `[p]`, to be asked for on the device thread."""
    with span("encode prompt"):
        embedding: Tensor = model.engine.embed_prompts([prompt])[0]
    return embedding


def choose_models(catalogue: Mapping[ModelId, ModelSpec], wanted: Sequence[ModelId]) -> tuple[ModelSpec, ...]:
    """The models a worker is told to serve; none named is all. ConfigurationError where the catalogue lacks one."""
    missing = [model for model in wanted if model not in catalogue]
    if missing:
        raise ConfigurationError(
            f"SPARKE_MODELS names {', '.join(missing)}; the catalogue has {', '.join(catalogue)}"
        )
    return tuple(catalogue[model] for model in dict.fromkeys(wanted or catalogue))


def check_latent_spaces(loaded: Mapping[ModelId, LoadedModel]) -> None:
    """Models that name one latent space share memories: ConfigurationError where vectors differ in length or in grid."""
    first: dict[LatentSpace, LoadedModel] = {}
    for model in loaded.values():
        other = first.setdefault(model.spec.latent_space, model)
        if model.dimensions != other.dimensions:
            raise ConfigurationError(
                f"models {other.spec.model_id} and {model.spec.model_id} name one latent space,"
                f" {model.spec.latent_space}, but have {other.dimensions} and {model.dimensions};"
                " give one of them another latent_space"
            )
        if model.engine.preset.grid != other.engine.preset.grid:
            raise ConfigurationError(
                f"models {other.spec.model_id} and {model.spec.model_id} name one latent space,"
                f" {model.spec.latent_space}, but pool to {other.engine.preset.grid} and {model.engine.preset.grid};"
                " give one of them another latent_space"
            )


def choose_device(wanted: str) -> str:
    """The torch device of the setting; `auto` is CUDA where there is one, else MPS, else the CPU.

    ConfigurationError where torch sees none such: else each start of the worker would end at its first model.
    """
    if "," in wanted:
        raise ConfigurationError(
            f"SPARKE_DEVICE is {wanted}: a worker has one device; run a worker for each, as `sparke serve` does"
        )
    if wanted != "auto":
        _check_device(wanted)
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_device(wanted: str) -> None:
    kind, _, index = wanted.partition(":")
    num_seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) >= num_seen:
        raise ConfigurationError(
            f"SPARKE_DEVICE is {wanted}, and torch sees {num_seen} CUDA devices; `sparke doctor` says why; set it to auto or cpu"
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigurationError("SPARKE_DEVICE is mps, and torch sees none; set it to auto or cpu")


def load_spec(spec: ModelSpec, device: str) -> ImageEngine:
    """The engine of a catalogue entry.

    A LoRA that does not fit fails the jobs that name it, and is logged here.
    ConfigurationError for a preset that is unknown, whose members do not agree, or whose grid its memories' name hides, for
    one without a grid where images are not of the model's own size, and for LoRAs that are not there or of a model that
    loads none.
    """
    preset = spec.diversity_preset
    name, changes = (preset, {}) if isinstance(preset, str) else (preset.base, preset.changes)
    try:
        files = [
            LoraFile(lora.name, find_lora(lora.source, lora.file_name, lora.revision)) for lora in spec.loras
        ]
        engine = load_engine(
            spec.source,
            revision=spec.revision,
            dtype=spec.dtype,
            scheduler=spec.scheduler,
            preset=name,
            preset_changes=changes,
            loras=files,
            device=device,
        )
    except InvalidArgument as error:
        raise ConfigurationError(f"model {spec.model_id}: {error}") from error
    try:
        _check_grid(spec, engine)
        _check_size(spec, engine)
    except ConfigurationError:
        engine.close()
        raise
    if isinstance(engine, PipelineEngine):
        for lora, reason in engine.loras.broken.items():
            _log.error("lora_not_loaded", model=spec.model_id, lora=lora, reason=reason)
    return engine


def check_lora_files(specs: Sequence[ModelSpec]) -> None:
    """ConfigurationError where a LoRA that should lie on this machine does not: said before any model is loaded."""
    for spec in specs:
        for lora in spec.loras:
            if lora.is_local:
                try:
                    find_lora(lora.source, lora.file_name)
                except InvalidArgument as error:
                    raise ConfigurationError(
                        f"model {spec.model_id}: the LoRA {lora.name!r}: {error}"
                    ) from error


def _check_grid(spec: ModelSpec, engine: ImageEngine) -> None:
    """ConfigurationError where a table's grid is not what the name of the model's memories tells.

    The name has a grid where the table states one. The kind's own grid has none, which only the loaded model tells. A
    preset that is given by its name alone is under a latent space of the operator's own, as ADR 1 has it.
    """
    preset = spec.diversity_preset
    if isinstance(preset, str):
        return
    own = kinds_preset(engine).grid
    base = own if preset.base == "default" else preset_named(preset.base).grid
    if preset.grid is None and base != own:
        raise ConfigurationError(
            f"model {spec.model_id}: the base {preset.base} of its diversity_preset pools to {_as_toml(base)}, and a model "
            f"of this kind to {_as_toml(own)}, so its memories would not fit their name {spec.latent_space}: state "
            f"grid = {_as_toml(base)}, which becomes part of that name"
        )
    if preset.grid is not None and base == own == engine.preset.grid:
        raise ConfigurationError(
            f"model {spec.model_id}: grid = {_as_toml(own)} of its diversity_preset is the one that it has anyway, and "
            "stating it leaves the memories that have the name without it: leave it out; if it has memories with it, "
            f'give latent_space = "{spec.latent_space}"'
        )


def _check_size(spec: ModelSpec, engine: ImageEngine) -> None:
    """ConfigurationError where a preset without a grid meets images that are not of the model's own size.

    The catalogue has seen to it that there is one size; which one is the model's own, the loaded model tells.
    """
    size = spec.size
    if engine.preset.grid is not None or not isinstance(engine, PipelineEngine):
        return
    if (size.default_width_px, size.default_height_px) != (engine.own_side_px, engine.own_side_px):
        raise ConfigurationError(
            f"model {spec.model_id}: its diversity_preset has no grid, so it remembers images of its own size alone, which is "
            f"{engine.own_side_px} px, and the catalogue gives it {size.default_width_px}x{size.default_height_px}: state "
            "that size, or a grid"
        )


def _as_toml(grid: tuple[int, int] | None) -> str:
    return '"whole"' if grid is None else f"[{grid[0]}, {grid[1]}]"


async def load_model(
    spec: ModelSpec, thread: DeviceThread, *, load: Callable[[ModelSpec], ImageEngine], metrics: Metrics
) -> LoadedModel:
    """Load one model on the device thread. Unavailable, with the model and the cause, where that fails.

    ConfigurationError, as it comes, where the model's entry is wrong.
    """
    log = _log.bind(model=spec.model_id, source=spec.source)
    started_s = time.perf_counter()
    try:
        engine = await thread.run(lambda: load(spec))
    except ConfigurationError:
        raise
    except Exception as error:
        log.exception("model_not_loaded")
        raise Unavailable(f"model {spec.model_id} cannot be loaded from {spec.source!r}: {error}") from error
    seconds = time.perf_counter() - started_s
    metrics.model_load_seconds.labels(spec.model_id).observe(seconds)
    log.info("model_loaded", seconds=round(seconds, 3))
    return LoadedModel(spec, engine)
