"""The models that can be asked for."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from app.http.bodies.answers import ModelAnswer, ModelsAnswer, describe_model
from app.http.bodies.generation import find_model
from app.http.course.edits import models_edits
from app.http.deps import DepsOf
from app.http.guard.auth import Tenant
from app.http.openapi.error_docs import fails_with

router = APIRouter(prefix="/v1/models", tags=["models"])


def _started_at_s(request: Request) -> int:
    return int(request.app.state.started_at_s)


StartedAt = Annotated[int, Depends(_started_at_s)]


@router.get("")
async def list_models(_tenant: Tenant, deps: DepsOf, created_s: StartedAt) -> ModelsAnswer:
    """All models of the catalogue; `ready` says whether a worker has one loaded now."""
    edits = await models_edits(deps)
    return ModelsAnswer(
        data=[
            describe_model(spec, created_s=created_s, edits=edits.get(spec.model_id))
            for spec in deps.catalogue.values()
        ]
    )


@router.get("/{model_id}", responses=fails_with(404))
async def show_model(model_id: str, _tenant: Tenant, deps: DepsOf, created_s: StartedAt) -> ModelAnswer:
    """One model of the catalogue."""
    spec = find_model(model_id, deps.catalogue)
    edits = await models_edits(deps)
    return describe_model(spec, created_s=created_s, edits=edits.get(spec.model_id))
