"""What you may use, and what you have used."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.http.bodies.tenant_answers import UsageAnswer, read_usage
from app.http.deps import DepsOf
from app.http.guard.auth import Tenant
from app.http.openapi.error_docs import fails_with

MAX_DAYS = 366

router = APIRouter(prefix="/v1/usage", tags=["usage"])

Days = Annotated[int, Query(ge=1, le=MAX_DAYS, description="So many days, today's the first.")]


@router.get("", responses=fails_with(400))
async def show_usage(tenant_id: Tenant, deps: DepsOf, days: Days = 31) -> UsageAnswer:
    """Your quotas, what is stored of you now, and what you used day by day."""
    return await read_usage(tenant_id, days, deps)
