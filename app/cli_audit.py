"""`sparke audit`: who did what to keys, tenants, memories and webhooks."""

import re
from typing import Annotated

import typer

from app.audit.log import AuditLimits, AuditLog, AuditQuery
from app.cli_redis import DataDir, read_settings, run_on_redis, show_time
from app.domain.audit import RECORD_FORM, AuditRecord, Journal
from app.errors import InvalidValue
from app.jobs.workers import now_ms

MAX_LISTED = 1000


def show_audit(
    journal: Annotated[
        Journal,
        typer.Option(help="admin: administrators and this command line; tenants; or refused attempts."),
    ] = Journal.ADMIN,
    tenant: Annotated[str | None, typer.Option(help="Only what was done to this tenant.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LISTED, help="Look at so many records.")] = 100,
    *,
    after: Annotated[str | None, typer.Option(help="Only records older than the one with this id.")] = None,
    data_dir: DataDir = None,
) -> None:
    """List the audit log, the newest first: id, time, act, outcome, actor, its tenant, tenant, target, act's id, the rest."""
    if after is not None and re.fullmatch(RECORD_FORM, after) is None:
        raise InvalidValue(
            f"--after takes the id of a record, the first column, such as 1700000000000-0; got {after[:40]!r}"
        )
    settings = read_settings(data_dir=data_dir)
    query = AuditQuery(journal, limit, "desc", after)
    page = run_on_redis(
        settings,
        lambda redis, _: AuditLog(redis, AuditLimits.of(settings), clock_ms=now_ms).read(query),
    )
    for record_id, record in page.records:
        if tenant in (None, record.deed.tenant):
            typer.echo(_show(record_id, record))


def _show(record_id: str, record: AuditRecord) -> str:
    deed = record.deed
    rest = [] if record.code is None else [f"code={record.code}"]
    rest += [] if deed.request_id is None else [f"request={deed.request_id}"]
    rest += [f"{name}={value}" for name, value in record.facts.items()]
    at = show_time(int(record_id.partition("-")[0]))
    columns = [
        record_id,
        at,
        deed.act,
        record.outcome,
        deed.actor,
        deed.actor_tenant,
        deed.tenant,
        deed.target,
    ]
    return "\t".join([*(column or "-" for column in columns), record.act_id, " ".join(rest)])
