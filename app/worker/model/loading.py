"""A worker's models, one after the other: downloaded, loaded, warmed up; and how far each is, told as it goes."""

from asyncio import CancelledError
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event

import structlog

from app.domain.ids import ModelId
from app.domain.model import ModelSpec
from app.telemetry.metrics import Metrics
from app.worker.model.device import DeviceThread
from app.worker.model.engine_metrics import EngineMetrics
from app.worker.model.models import LoadedModel, check_latent_spaces, load_model
from app.worker.model.progress import LoadProgress
from app.worker.model.warm_up import warm_up
from sparke_engine.diffusion.engine import ImageEngine
from sparke_engine.diffusion.fetching import OnBytes, fetch_pipeline

LoadSpec = Callable[[ModelSpec], ImageEngine]
FetchSpec = Callable[[ModelSpec, OnBytes], bool]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Loading:
    """What models are loaded with. `load` and `fetch` run on the device thread."""

    thread: DeviceThread
    load: LoadSpec
    fetch: FetchSpec
    metrics: Metrics
    progress: LoadProgress
    warms_up: bool


async def load_all(specs: Sequence[ModelSpec], loading: Loading) -> dict[ModelId, LoadedModel]:
    """All models. Raises as `load_model` does, and ConfigurationError where two do not go together."""
    loaded: dict[ModelId, LoadedModel] = {}
    for spec in specs:
        loaded[spec.model_id] = await _load_one(spec, loading)
    check_latent_spaces(loaded)
    return loaded


async def _load_one(spec: ModelSpec, loading: Loading) -> LoadedModel:
    progress, name, is_abandoned = loading.progress, spec.model_id, Event()

    def receive(done_bytes: int, total_bytes: int) -> None:
        if is_abandoned.is_set():
            raise InterruptedError("the worker stops")
        progress.receive(name, done_bytes, total_bytes)

    try:
        is_answered = await loading.thread.run(lambda: loading.fetch(spec, receive))
    except CancelledError:
        is_abandoned.set()  # a download's threads would keep the process for as long as it takes
        raise
    if not is_answered:
        _log.warning("hub_unreachable", model=name)
    progress.enter(name, "loading")
    model = await load_model(spec, loading.thread, load=loading.load, metrics=loading.metrics)
    if loading.warms_up:
        progress.enter(name, "warming_up")
        await warm_up(model, loading.thread)
    model.engine.listener = EngineMetrics(loading.metrics, name)
    progress.enter(name, "ready")
    return model


def fetch_spec(spec: ModelSpec, on_bytes: OnBytes) -> bool:
    """Downloads a catalogue entry's pipeline, if it is the hub's. False where that does not answer."""
    return fetch_pipeline(spec.source, spec.revision, on_bytes)


def fetch_nothing(_spec: ModelSpec, _on_bytes: OnBytes) -> bool:
    """For models that are no files."""
    return True
