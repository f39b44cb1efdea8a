"""A tenant's webhook: a URL that is told of events, and what it is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from app.domain.ids import TenantId, WebhookId

MAX_WEBHOOKS = 10
MAX_RETIRED = 3  # secrets of a webhook that sign beside its own
DEFAULT_GRACE_S = 86_400
MAX_GRACE_S = 7 * 86_400


@dataclass(frozen=True, slots=True)
class RetiredSecret:
    """A secret that another one has replaced, and that signs too until a time, in Unix milliseconds."""

    secret: str = field(repr=False)
    until_ms: int


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
    retired: tuple[RetiredSecret, ...] = ()

    def secrets_at(self, now_ms: int) -> list[str]:
        """What signs now: its secret, then those that were replaced lately."""
        return [self.secret, *(old.secret for old in self.retired if now_ms < old.until_ms)]

    def rotated(self, secret: str, now_ms: int, *, grace_s: int) -> "Webhook":
        """The webhook with a new secret. Its old one signs too for `grace_s`, and no longer any of those before it."""
        until_ms = now_ms + 1000 * grace_s
        old = [RetiredSecret(self.secret, until_ms), *self.retired]
        kept = [
            replace(each, until_ms=min(each.until_ms, until_ms)) for each in old if each.until_ms > now_ms
        ]
        return replace(self, secret=secret, retired=tuple(kept[:MAX_RETIRED]) if grace_s else ())


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """What happened: `job.succeeded` and so on, to what, when in Unix milliseconds. Each thing ends once.

    `trace` is where the request that it came of stands in a trace, as headers of the W3C; empty where that is not known.
    """

    type: str
    subject_id: str
    at_ms: int
    metadata: Mapping[str, str]
    trace: Mapping[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """The state that the thing is in since."""
        return self.type.partition(".")[2]
