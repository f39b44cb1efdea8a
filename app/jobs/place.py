"""Where a job stands: its name, its queue, and the keys that the scripts of its life touch.

A model has two queues: one named as the model itself, of jobs that make images, and one of questions about memories.
So nobody's question waits behind images, and each has turns, leases and bounds of its own, by the same scripts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from app.domain.ids import JobId, ModelId, TenantId, parse_job_id, parse_tenant_id
from app.domain.job import Job
from app.errors import InvalidId
from app.jobs import keys
from app.redis.members import member_of
from app.tenants.names import usage_key
from app.webhooks.keys import outbox_key, webhooks_key

_QUESTIONS = "~questions"  # no model's id has a tilde


def queue_of_questions(model: ModelId) -> ModelId:
    """The name of the queue of a model's questions, where keys take a model's."""
    return ModelId(f"{model}{_QUESTIONS}")


def queues_of(models: Iterable[ModelId]) -> tuple[ModelId, ...]:
    """The names of all queues of some models."""
    return tuple(queue for model in models for queue in (model, queue_of_questions(model)))


@dataclass(frozen=True, slots=True)
class JobPlace:
    """A job and the model whose stream it goes through; that of a question is the name of its queue."""

    tenant_id: TenantId
    job_id: JobId
    model: ModelId

    @classmethod
    def of(cls, job: Job) -> "JobPlace":
        """The place of a job."""
        queue = queue_of_questions(job.model) if job.kind.is_question else job.model
        return cls(job.tenant_id, job.job_id, queue)

    @classmethod
    def of_entry(cls, model: ModelId, fields: Mapping[bytes, bytes] | None) -> "JobPlace | None":
        """The place that a stream entry names; None where it is not of ours."""
        try:
            found = fields or {}
            return cls(parse_tenant_id(found[b"t"].decode()), parse_job_id(found[b"j"].decode()), model)
        except (KeyError, ValueError, InvalidId):
            return None

    @property
    def is_question(self) -> bool:
        """True where the job is in a queue of questions."""
        return self.model.endswith(_QUESTIONS)

    @property
    def model_id(self) -> ModelId:
        """The model that is asked for, of whichever queue."""
        return ModelId(self.model.removesuffix(_QUESTIONS))

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
