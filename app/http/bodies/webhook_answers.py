"""What `/v1/webhooks` takes and answers with."""

from typing import Literal

from pydantic import BaseModel, Field

from app.domain.webhook import Webhook
from app.http.bodies.generation_bodies import WireModel


class WebhookBody(WireModel):
    """Where to be told."""

    url: str = Field(min_length=1, max_length=2048, description="https, and a public address.")


class WebhookAnswer(BaseModel):
    """A webhook. Times are Unix seconds."""

    id: str
    object: Literal["webhook"] = "webhook"
    url: str = Field(description="Where messages go.")
    status: Literal["active", "disabled"] = Field(description="Disabled where its receiver answered 410.")
    created_at: int


class NewWebhookAnswer(WebhookAnswer):
    """A webhook that was made or got its secret just now."""

    secret: str = Field(description="What its messages are signed with. It is shown this once.")


class WebhooksAnswer(BaseModel):
    """Webhooks, the oldest first."""

    object: Literal["list"] = "list"
    data: list[WebhookAnswer]


class WebhookDeletedAnswer(BaseModel):
    """A webhook that is gone."""

    id: str
    object: Literal["webhook"] = "webhook"
    deleted: Literal[True] = True


def describe_webhook(webhook: Webhook) -> WebhookAnswer:
    """The webhook as it is shown: without its secret."""
    return WebhookAnswer(
        id=webhook.webhook_id,
        url=webhook.url,
        status="active" if webhook.disabled_at_ms is None else "disabled",
        created_at=webhook.created_at_ms // 1000,
    )
