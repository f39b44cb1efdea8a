"""For administrators: what was done to keys, tenants, memories and webhooks, and by whom."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from app.audit.log import AuditQuery
from app.domain.audit import RECORD_FORM, Journal
from app.http.bodies.audit_answers import AuditAnswer, describe_record
from app.http.deps import DepsOf
from app.http.guard.auth import Tenant
from app.http.openapi.error_docs import fails_with

MAX_LISTED = 100

router = APIRouter(prefix="/v1/admin/audit", tags=["admin"])


@router.get("", responses=fails_with(400))
async def read_audit_log(
    _admin: Tenant,
    deps: DepsOf,
    *,
    journal: Annotated[
        Journal,
        Query(
            description="`admin`: acts of administrators and of the command line. `tenants`: what tenants did to their own"
            " memories and webhooks. `refused`: attempts at either that no key allowed."
        ),
    ] = Journal.ADMIN,
    after: Annotated[
        str | None, Query(pattern=RECORD_FORM, description="The id of the record before the first one.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED, description="At most so many.")] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="By time; the newest first.")] = "desc",
) -> AuditAnswer:
    """The audit log. A deed has two records with one `act_id`: `begun`, written before it was done, and how it ended.

    One that was begun and has no other record may or may not have been done: what did it died, or lost Redis. A cursor stays
    good when its own record has gone.
    """
    page = await deps.audit.read(AuditQuery(journal, limit, order, after))
    data = [describe_record(record_id, record) for record_id, record in page.records]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return AuditAnswer(data=data, first_id=ends[0], last_id=ends[1], has_more=page.has_more)
