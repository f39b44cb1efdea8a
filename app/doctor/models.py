"""What is checked of the catalogue, and on a worker's machine of the models: whether their files are here, or the hub is."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from app.catalogue import load_catalogue
from app.doctor.disk import is_there
from app.doctor.finding import Finding, ok, problem, warning
from app.domain.ids import ModelId
from app.domain.model import ModelSpec
from app.errors import ConfigurationError
from app.settings import Settings

_INDEX = "model_index.json"
_BUILT_IN = "builtin:"

HubLook = Callable[[str, str, str | None], str | None]
"""A hub id, a file and a revision: "" where the file is in the cache, else why the hub does not give it, None if it would."""


def examine_models(settings: Settings) -> list[Finding]:
    """The catalogue; and the models that a worker here would serve, where what runs them is installed."""
    try:
        catalogue = load_catalogue(settings.models_file)
    except ConfigurationError as error:
        return [problem("catalogue", error.message, "correct the file, or SPARKE_MODELS_FILE")]
    found = [judge_catalogue(catalogue, settings)]
    if find_spec("torch") is None:
        return [*found, ok("models", "not looked for: torch is not installed, so no worker can run here")]
    served = [spec for name, spec in catalogue.items() if not settings.models or name in settings.models]
    return found + [finding for spec in served for finding in judge_model(spec, look_at_hub)]


def judge_catalogue(catalogue: Mapping[ModelId, ModelSpec], settings: Settings) -> Finding:
    """It was read, and has the models that the worker is told to serve."""
    missing = [model for model in settings.models if model not in catalogue]
    has = f"it has {', '.join(catalogue)}"
    if missing:
        return problem(
            "catalogue",
            f"SPARKE_MODELS names {', '.join(missing)}, and {has}",
            "correct SPARKE_MODELS, or add the models to SPARKE_MODELS_FILE",
        )
    return ok("catalogue", f"{settings.models_file or 'the packaged one'}: {has}")


def judge_model(spec: ModelSpec, look: HubLook) -> list[Finding]:
    """The model and its LoRAs."""
    name = f"model {spec.model_id}"
    if spec.source.startswith(_BUILT_IN):
        found = [ok(name, f"{spec.source} comes with the service")]
    elif spec.source.startswith("/"):
        found = [judge_local(name, Path(spec.source) / _INDEX, "source")]
    else:
        found = [judge_hub(name, spec.source, look(spec.source, _INDEX, spec.revision))]
    for lora in spec.loras:
        what, path = f"LoRA {spec.model_id} {lora.name}", lora.local_path
        if path is not None:
            found.append(judge_local(what, path, "source or weight_name"))
        else:
            found.append(judge_hub(what, lora.source, look(lora.source, lora.file_name, lora.revision)))
    return found


def judge_local(name: str, path: Path, member: str) -> Finding:
    """A file that the catalogue says is on this machine."""
    if is_there(path) and path.is_file():
        return ok(name, f"{path} is there")
    return problem(
        name, f"there is no file {path}", f"put it there, or correct its {member} in SPARKE_MODELS_FILE"
    )


def judge_hub(name: str, source: str, seen: str | None) -> Finding:
    """What the hub has, or had."""
    if seen == "":
        return ok(name, f"{source} is in the cache of the hub's files")
    if seen is None:
        return warning(
            name,
            f"{source} is not on this machine; the hub has it",
            f"fetch it before the first start, which waits for it otherwise: `hf download {source}`",
        )
    return problem(
        name,
        f"{source} is not on this machine, and the hub does not give it: {seen}",
        "correct its source in SPARKE_MODELS_FILE, log in to the hub with `hf auth login`, or open the way there",
    )


def look_at_hub(source: str, file_name: str, revision: str | None) -> str | None:
    """See `HubLook`. Nothing is fetched."""
    import httpx  # noqa: PLC0415 - the hub's client raises its errors
    from huggingface_hub import HfApi, try_to_load_from_cache  # noqa: PLC0415 - an API machine has it not

    try:
        if isinstance(try_to_load_from_cache(source, file_name, revision=revision), str):
            return ""
        has_file = HfApi().file_exists(source, file_name, revision=revision)
    except (OSError, ValueError, httpx.HTTPError) as error:
        return str(error) or type(error).__name__
    return None if has_file else f"there is no {file_name}, or no such model"
