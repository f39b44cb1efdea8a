"""The models that can be asked for."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from app.domain.ids import ModelId
from app.http.answers import ModelAnswer, ModelsAnswer, describe_model
from app.http.auth import Tenant
from app.http.deps import Deps, DepsOf
from app.http.error_docs import fails_with
from app.http.generation import find_model

router = APIRouter(prefix="/v1/models", tags=["models"])


def _started_at_s(request: Request) -> int:
    return int(request.app.state.started_at_s)


StartedAt = Annotated[int, Depends(_started_at_s)]


@router.get("")
async def list_models(_tenant: Tenant, deps: DepsOf, created_s: StartedAt) -> ModelsAnswer:
    """All models of the catalogue; `ready` says whether a worker has one loaded now."""
    ready = await _ready_models(deps)
    found = deps.catalogue.values()
    return ModelsAnswer(
        data=[describe_model(spec, created_s=created_s, is_ready=spec.model_id in ready) for spec in found]
    )


@router.get("/{model_id}", responses=fails_with(404))
async def show_model(model_id: str, _tenant: Tenant, deps: DepsOf, created_s: StartedAt) -> ModelAnswer:
    """One model of the catalogue."""
    spec = find_model(model_id, deps.catalogue)
    ready = await _ready_models(deps)
    return describe_model(spec, created_s=created_s, is_ready=spec.model_id in ready)


async def _ready_models(deps: Deps) -> frozenset[ModelId]:
    workers = await deps.registry.list_workers()
    return frozenset(model for worker in workers if worker.phase == "ready" for model in worker.models)
