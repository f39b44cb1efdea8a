"""Records of the audit log on the wire."""

from typing import Literal

from pydantic import BaseModel, Field

from app.domain.audit import AuditRecord, Outcome


class AuditRecordAnswer(BaseModel):
    """Who did what to whom. Nothing of a prompt, an image or a secret is in it."""

    id: str
    object: Literal["audit.record"] = "audit.record"
    created_at: int = Field(description="Unix seconds, by the clock of Redis.")
    act_id: str = Field(description="What the record of a beginning and that of its end have in common.")
    act: str = Field(description="What was done: `key.revoke`, `memory.forget` and so on.")
    outcome: Outcome = Field(
        description="`begun`, before it is done; then `done`, `refused` for a fault of the request, or `failed` for one of the"
        " service, which may have done it."
    )
    code: str | None = Field(description="The status or the code of what was not done.")
    actor: str = Field(
        description="The id of an API key, `cli`, or `none`: no key that works, or none was needed."
    )
    actor_tenant: str | None = Field(description="Whose key that is.")
    tenant_id: str | None = Field(description="On whom it was done.")
    target: str | None = Field(description="On which key, webhook or memory.")
    request_id: str | None = Field(
        description="The `x-request-id` of the request; null where it came by the command line."
    )
    facts: dict[str, int | str] = Field(description="Numbers and ids: how many entries, which key is new.")


class AuditAnswer(BaseModel):
    """Some of a journal."""

    object: Literal["list"] = "list"
    data: list[AuditRecordAnswer]
    first_id: str | None
    last_id: str | None = Field(description="What `after` takes for the next ones.")
    has_more: bool


def describe_record(record_id: str, record: AuditRecord) -> AuditRecordAnswer:
    """A record as it is shown."""
    deed = record.deed
    return AuditRecordAnswer(
        id=record_id,
        created_at=int(record_id.partition("-")[0]) // 1000,
        act_id=record.act_id,
        act=deed.act,
        outcome=record.outcome,
        code=record.code,
        actor=deed.actor,
        actor_tenant=deed.actor_tenant,
        tenant_id=deed.tenant,
        target=deed.target,
        request_id=deed.request_id,
        facts=dict(record.facts),
    )
