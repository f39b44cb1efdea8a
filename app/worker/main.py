"""The worker's main: opens what it works with, loads its models, works, and closes in reverse order."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import structlog
import torch

from app.catalogue import load_catalogue
from app.domain.ids import ModelId
from app.domain.model import ModelSpec
from app.errors import ConfigurationError, StoreUnavailable
from app.images.store import ImageStore
from app.jobs.place import queue_of_questions
from app.jobs.queue import JobQueue
from app.jobs.types import JobLimits, ReservedJob, WorkerInfo
from app.jobs.workers import WorkerRegistry, make_worker_id, now_ms
from app.memory.migration import check_format
from app.memory.store import MemoryStore
from app.redis.cancelling import end_task
from app.redis.connection import check_server, connect
from app.settings import Settings
from app.signals import stop_signals
from app.telemetry.exporting import exporting_traces
from app.telemetry.metrics import Metrics
from app.worker.chores import (
    Desk,
    extend_leases,
    forget,
    measure,
    reclaim,
    sweep,
    sweep_images,
)
from app.worker.course.diversity import DiversityMeter
from app.worker.course.encoding import PictureRunner, RunnerByKind
from app.worker.course.parts import RunnerParts
from app.worker.course.questions import QuestionRunner
from app.worker.course.runner import BatchRunner
from app.worker.exposition import begin_metrics, set_ready
from app.worker.heartbeat import Heartbeat, quietly
from app.worker.loops.batch_caps import BatchCaps
from app.worker.loops.batcher import Batcher
from app.worker.loops.cap_keeper import CapKeeper
from app.worker.loops.loop import LoopParts, WorkerLoop
from app.worker.loops.question_loop import QuestionLoop, QuestionParts
from app.worker.loops.reserving import Reserving
from app.worker.loops.together import run_together
from app.worker.memory.memories import Memories
from app.worker.memory.memory_cache import MemoryCache
from app.worker.model.device import DeviceThread
from app.worker.model.libraries import adopt_libraries
from app.worker.model.loading import FetchSpec, Loading, LoadSpec, fetch_nothing, fetch_spec, load_all
from app.worker.model.models import (
    LoadedModel,
    check_lora_files,
    choose_device,
    choose_models,
    load_spec,
)
from app.worker.model.progress import LoadProgress, shown_progress
from app.worker.patience import Patience
from app.worker.port import WorkerHealth, worker_port
from sparke_engine.diffusion.fetching import OnBytes
from sparke_engine.diffusion.pipelines import TOY

_NUM_ENCODERS = 4
_DEVICE_CLOSE_S = 3.0  # twice this beyond drain_timeout_s, at the worst

_log = structlog.get_logger(__name__)


def run_worker(settings: Settings) -> None:
    """Run one worker until SIGINT or SIGTERM. `settings.redis_url` must be given.

    Raises ConfigurationError for what is wrong with the settings, Unavailable where a model cannot be loaded.
    """
    if settings.torch_threads is not None:
        torch.set_num_threads(settings.torch_threads)
    with exporting_traces("sparke-worker"):
        asyncio.run(_run_until_signal(settings))


async def _run_until_signal(settings: Settings) -> None:
    device = choose_device(settings.device)

    def fetch(spec: ModelSpec, on_bytes: OnBytes) -> bool:
        if spec.source != TOY:
            adopt_libraries(settings.log_levels)  # the hub's client speaks first
        return fetch_spec(spec, on_bytes)

    with stop_signals() as stop:
        try:
            await work(settings, stop, load=partial(load_spec, device=device), fetch=fetch)
        except StoreUnavailable:
            if not stop.is_set():
                raise
            _log.warning("stopped_while_redis_was_away")


async def work(
    settings: Settings, stop: asyncio.Event, *, load: LoadSpec, fetch: FetchSpec = fetch_nothing
) -> None:
    """Run one worker until `stop` is set: then finish the running batch, give back the rest, close everything."""
    specs = choose_models(load_catalogue(settings.models_file), settings.models)
    check_lora_files(specs)
    metrics, health = Metrics.of_process("worker"), WorkerHealth()
    begin_metrics(metrics, [spec.model_id for spec in specs], choose_device(settings.device))
    async with AsyncExitStack() as stack:
        metrics_url = stack.enter_context(worker_port(settings, metrics.registry, health))
        desk = await _open_desk(stack, settings, stop, metrics)
        thread, worker_id = desk.thread, desk.worker_id
        structlog.contextvars.bind_contextvars(worker_id=worker_id)
        models = tuple(spec.model_id for spec in specs)
        info = WorkerInfo(worker_id, "loading", models, started_at_ms=now_ms(), metrics_url=metrics_url)
        heartbeat = Heartbeat(desk.registry, info, interval_s=settings.heartbeat_interval_s, metrics=metrics)
        await desk.patience.call(heartbeat.beat)
        stack.push_async_callback(quietly, lambda: desk.registry.remove(worker_id), "worker_not_removed")
        beating = await stack.enter_async_context(_background(heartbeat.run()))
        memories = await asyncio.to_thread(Memories, desk.redis, settings, metrics)
        stack.push_async_callback(memories.close)
        with shown_progress(settings) as shown:
            progress = LoadProgress(models, heartbeat.tell, shown)
            means_of_loading = Loading(thread, load, fetch, metrics, progress, warms_up=settings.warm_up)
            async with _background(progress.tick()):
                loading = load_all(specs, means_of_loading)
                loaded = await _until_stopped(loading, stop, (beating,), patience_s=0.0)
        if loaded is None:
            return
        stack.push_async_callback(_close_engines, thread, loaded, settings.drain_timeout_s)
        images = await ImageStore.reach(settings.image_store_url)
        queue, asked = await _open_queue(stack, desk), await _open_queue(stack, desk)
        leasing = await stack.enter_async_context(_background(extend_leases(desk, (queue, asked))))
        saving = await stack.enter_async_context(_background(memories.keep_saving()))
        diversity = DiversityMeter(metrics)
        means = _Means(loaded, images, queue, asked, memories.copies, diversity)
        loop, questions = _build_loops(stack, desk, means)
        reclaiming = await stack.enter_async_context(_background(reclaim(desk, models)))
        sweeping = await stack.enter_async_context(_background(sweep(desk, models)))
        tidying = await stack.enter_async_context(_background(sweep_images(desk, images)))
        forgetting = await stack.enter_async_context(_background(forget(desk, memories.copies, diversity)))
        measuring = await stack.enter_async_context(_background(measure(diversity)))
        heartbeat.enter("ready", edits={model: found.engine.edits for model, found in loaded.items()})
        _log.info("worker_ready", models=models)
        set_ready(metrics, models, 1)
        health.phase = "ready"
        leave = partial(_leave, metrics, models, health)
        draining = asyncio.create_task(_say_draining(stop, heartbeat, leave))
        stack.callback(draining.cancel)
        guards = (beating, leasing, reclaiming, sweeping, tidying, forgetting, saving, measuring)
        working = run_together(loop.run(), questions.run())
        await _until_stopped(working, stop, guards, patience_s=settings.drain_timeout_s)
        _log.info("worker_stopped")


async def _open_desk(
    stack: AsyncExitStack, settings: Settings, stop: asyncio.Event, metrics: Metrics
) -> Desk:
    if settings.redis_url is None:
        raise ConfigurationError("a worker needs a Redis: set SPARKE_REDIS_URL or give --redis-url")
    redis = connect(settings.redis_url, timeout_s=settings.redis_timeout_s)
    stack.push_async_callback(redis.aclose)
    patience = Patience(stop, now_ms, metrics)
    await patience.call(lambda: check_server(redis))
    await patience.call(lambda: check_format(redis))
    registry = WorkerRegistry(redis, ttl_s=settings.heartbeat_ttl_s)
    thread = DeviceThread()
    stack.push_async_callback(_close_device, thread)
    return Desk(settings, redis, registry, metrics, patience, stop, thread, make_worker_id())


async def _open_queue(stack: AsyncExitStack, desk: Desk) -> JobQueue:
    queue = JobQueue(desk.redis, JobLimits.of(desk.settings), metrics=desk.metrics)
    await desk.patience.call(queue.__aenter__)
    stack.push_async_exit(queue)
    return queue


@dataclass(frozen=True, slots=True)
class _Means:
    """What jobs are done with. `asked` is the queue as those see it who answer questions."""

    loaded: dict[ModelId, LoadedModel]
    images: ImageStore
    queue: JobQueue
    asked: JobQueue
    memories: MemoryCache
    diversity: DiversityMeter


def _build_loops(stack: AsyncExitStack, desk: Desk, means: _Means) -> tuple[WorkerLoop, QuestionLoop]:
    settings, metrics, queue, loaded = desk.settings, desk.metrics, means.queue, means.loaded
    encoders = ThreadPoolExecutor(_NUM_ENCODERS, thread_name_prefix="png")
    stack.callback(encoders.shutdown)
    caps = BatchCaps(max_images=settings.max_batch_images)
    for model in loaded:
        metrics.batch_cap_images.labels(model).set(caps.max_images)
    parts = RunnerParts(
        models=loaded,
        device=desk.thread,
        memories=means.memories,
        versions=MemoryStore(desk.redis),
        jobs=queue,
        images=means.images,
        encoders=encoders,
        patience=desk.patience,
        caps=CapKeeper(caps, metrics, now_ms),
        diversity=means.diversity,
        clock_ms=now_ms,
        service_version=version("sparke"),
        metrics=metrics,
    )
    batcher: Batcher[ReservedJob] = Batcher(
        max_images=settings.max_batch_images, window_ms=settings.batch_window_ms, cap_of=caps.cap_of
    )
    loop = WorkerLoop(
        LoopParts(
            source=queue,
            runner=RunnerByKind(BatchRunner(parts), PictureRunner(parts)),
            batcher=batcher,
            models=tuple(loaded),
            worker_id=desk.worker_id,
            patience=desk.patience,
            clock_ms=now_ms,
            stop=desk.stop,
            metrics=metrics,
        )
    )
    names = tuple(queue_of_questions(model) for model in loaded)
    reserving = Reserving(means.asked, names, desk.worker_id, desk.patience, metrics)
    answer = QuestionRunner(replace(parts, jobs=means.asked)).run
    return loop, QuestionLoop(QuestionParts(reserving, answer, desk.stop))


async def _say_draining(stop: asyncio.Event, heartbeat: Heartbeat, leave: Callable[[], None]) -> None:
    await stop.wait()
    heartbeat.enter("draining")
    leave()


def _leave(metrics: Metrics, models: tuple[ModelId, ...], health: WorkerHealth) -> None:
    set_ready(metrics, models, 0)
    health.phase = "draining"


async def _until_stopped(
    work: Coroutine[Any, Any, Any],
    stop: asyncio.Event,
    guards: tuple[asyncio.Task[None], ...],
    *,
    patience_s: float,
) -> Any:
    """The work's result. None where `stop` came and it was not done `patience_s` later: then it is cancelled.

    Raises what the work raises, or what ended a guard, none of which may end before it.
    """
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping, *guards}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and stopping.done() and patience_s > 0:
            await asyncio.wait({working, *guards}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        for guard in guards:
            if guard.done():
                guard.result()
        if working.done():
            return working.result()
        _log.warning("work_abandoned", after_s=patience_s)
        return None
    finally:
        stopping.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})


async def _close_engines(thread: DeviceThread, loaded: dict[ModelId, LoadedModel], timeout_s: float) -> None:
    """Give the device's memory back, unless the device is still busy with what was abandoned."""
    for model in reversed(loaded.values()):
        try:
            async with asyncio.timeout(min(timeout_s, _DEVICE_CLOSE_S)):
                await thread.run(model.engine.close)
        except Exception:  # noqa: BLE001 - the others are closed all the same
            _log.exception("engine_not_closed", model=model.spec.model_id)


async def _close_device(thread: DeviceThread) -> None:
    if not await asyncio.to_thread(thread.close, _DEVICE_CLOSE_S):
        _log.warning("device_abandoned", after_s=_DEVICE_CLOSE_S)


@asynccontextmanager
async def _background(coroutine: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """A task for as long as the context lasts."""
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        await end_task(task)
