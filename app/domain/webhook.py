"""A tenant's webhook: a URL that is told of events, and what it is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.domain.ids import TenantId, WebhookId

MAX_WEBHOOKS = 10


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where events go, and the secret they are signed with: `whsec_` and base64. Times are Unix milliseconds.

    A disabled one is told nothing, not even later of what happens meanwhile.
    """

    tenant_id: TenantId
    webhook_id: WebhookId
    url: str
    created_at_ms: int
    secret: str = field(repr=False)
    disabled_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """What happened: `job.succeeded` and so on, to what, when in Unix milliseconds. Each thing ends once."""

    type: str
    subject_id: str
    at_ms: int
    metadata: Mapping[str, str]

    @property
    def status(self) -> str:
        """The state that the thing is in since."""
        return self.type.partition(".")[2]
