"""Where a job stands: its name, and the keys that the scripts of its life touch."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.domain.ids import JobId, ModelId, TenantId, parse_job_id, parse_tenant_id
from app.domain.job import Job
from app.errors import InvalidId
from app.jobs import keys
from app.redis.members import member_of
from app.tenants.names import usage_key
from app.webhooks.keys import outbox_key, webhooks_key


@dataclass(frozen=True, slots=True)
class JobPlace:
    """A job and the model whose stream it goes through."""

    tenant_id: TenantId
    job_id: JobId
    model: ModelId

    @classmethod
    def of(cls, job: Job) -> "JobPlace":
        """The place of a job."""
        return cls(job.tenant_id, job.job_id, job.request.model)

    @classmethod
    def of_entry(cls, model: ModelId, fields: Mapping[bytes, bytes] | None) -> "JobPlace | None":
        """The place that a stream entry names; None where it is not of ours."""
        try:
            found = fields or {}
            return cls(parse_tenant_id(found[b"t"].decode()), parse_job_id(found[b"j"].decode()), model)
        except (KeyError, ValueError, InvalidId):
            return None

    @property
    def member(self) -> str:
        """The job's name outside its tenant's slot."""
        return member_of(self.tenant_id, self.job_id)

    @property
    def slot_keys(self) -> list[str]:
        """The keys job, waiting, released and events, as most scripts take them."""
        return [
            keys.job_key(self.tenant_id, self.job_id),
            keys.waiting_key(self.tenant_id, self.model),
            keys.released_key(self.tenant_id, self.model),
            keys.events_key(self.tenant_id, self.job_id),
        ]

    @property
    def end_keys(self) -> list[str]:
        """The same, webhooks, outbox and usage, as the scripts take them that may end the job."""
        told = [webhooks_key(self.tenant_id), outbox_key(self.tenant_id)]
        return [*self.slot_keys, *told, usage_key(self.tenant_id)]
