"""For whoever runs the service: is it alive, is it ready, what does it count."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.domain.ids import ModelId
from app.errors import CorruptRecord, NoWorker, ServiceError, StoreUnavailable, Unavailable
from app.http.bodies.answers import LiveAnswer, LoadingAnswer, ReadyAnswer
from app.http.deps import DepsOf
from app.http.errors import service_problem
from app.http.guard.auth import is_loopback
from app.http.openapi.document import METRICS_DOCS, READY_DOCS
from app.http.openapi.error_docs import fails_with
from app.http.process.store_gauges import StoreGauges
from app.jobs.types import LoadStage, ModelProgress, WorkerInfo

STORE_S = 2.0  # Redis may hang; whoever scrapes waits a few seconds, and would take this process for dead

router = APIRouter(tags=["health"])


@router.get("/livez")
async def livez() -> LiveAnswer:
    """This process answers; nothing else is asked."""
    return LiveAnswer()


Excluded = Annotated[
    Literal["workers"] | None,
    Query(
        description="`workers`: only whether this replica can take requests; jobs wait until a worker comes."
    ),
]


@router.get("/readyz", response_model=ReadyAnswer, responses=fails_with(400, 503), openapi_extra=READY_DOCS)
async def readyz(request: Request, deps: DepsOf, exclude: Excluded = None) -> Response:
    """Redis answers, and at least one worker has its models loaded.

    Else 503 with the member `state`: `store_unavailable`, `no_worker`, `loading` while the first worker gets ready, or `stopping`
    where this replica was told to end and others should be asked.
    Whatever sends requests to replicas asks with `exclude=workers`: a job must be accepted for a worker to be started.
    """
    if request.app.state.is_stopping:
        stopping = Unavailable("this replica stops; ask another one")
        return service_problem(request, stopping, {"state": "stopping"})
    try:
        workers = await deps.registry.list_workers()
    except ServiceError as error:
        return service_problem(request, error, {"state": error.code})
    phases = Counter(worker.phase for worker in workers)
    counts = {phase: phases[phase] for phase in ("loading", "ready", "draining")}
    if phases["ready"] or exclude == "workers":
        return JSONResponse({"status": "ok", "state": "ready", "workers": counts})
    state = "loading" if phases["loading"] else "no_worker"
    message = "a worker is loading its models" if phases["loading"] else "no worker is there to make images"
    models = {model: _describe(found) for model, found in farthest(workers).items()}
    extra = {"models": models} if state == "loading" and models else {}
    return service_problem(request, NoWorker(message), {"state": state, "workers": counts, **extra})


def farthest(workers: Iterable[WorkerInfo]) -> dict[ModelId, ModelProgress]:
    """How far models are that are being loaded, at the worker that has come farthest with each."""
    found: dict[ModelId, ModelProgress] = {}
    for worker in workers:
        for model, progress in worker.loading.items():
            known = found.get(model)
            if known is None or _way_of(known) < _way_of(progress):
                found[model] = progress
    return found


def _way_of(progress: ModelProgress) -> tuple[int, int]:
    return get_args(LoadStage).index(progress.stage), progress.done_bytes or 0


def _describe(progress: ModelProgress) -> dict[str, Any]:
    return LoadingAnswer(**asdict(progress)).model_dump(exclude_none=True)


@router.get("/metrics", response_class=Response, openapi_extra=METRICS_DOCS)
async def metrics(deps: DepsOf) -> Response:
    """Counts and times of this process in the Prometheus text format; of the queue and the memories what Redis has.

    Comments tell where workers of this machine serve theirs.
    """
    of_store = StoreGauges(deps)
    try:
        async with asyncio.timeout(STORE_S):
            await of_store.read()
            workers = await deps.registry.list_workers()
    except (StoreUnavailable, CorruptRecord, TimeoutError):
        deps.metrics.store_errors.labels("redis").inc()
        of_store.clear()
        workers = []
    text = b"".join(_comment(worker) for worker in workers) + generate_latest(deps.metrics.registry)
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})


def _comment(worker: WorkerInfo) -> bytes:
    """Where a worker on a loopback address serves its metrics. Others are found as the API itself is."""
    url = worker.metrics_url
    if url is None or not is_loopback(urlsplit(url).hostname or ""):
        return b""
    return f"# worker {worker.worker_id}: {url}\n".encode()
