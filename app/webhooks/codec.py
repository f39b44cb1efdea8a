"""JSON of webhooks and of what they are told. A value that does not fit the schema is CorruptRecord."""

import json
from datetime import UTC, datetime

from pydantic import TypeAdapter, ValidationError

from app.domain.webhook import Webhook, WebhookEvent
from app.errors import CorruptRecord
from app.redis.records import corrupt

_WEBHOOK = TypeAdapter(Webhook)
_TEXTS = TypeAdapter(dict[str, str])


def encode_webhook(webhook: Webhook) -> bytes:
    """The record's JSON, the secret included."""
    return _WEBHOOK.dump_json(webhook)


def decode_webhook(data: bytes) -> Webhook:
    """The record of some JSON. Raises CorruptRecord, without what is in it: there is a secret."""
    try:
        return _WEBHOOK.validate_json(data)
    except ValidationError as error:
        raise corrupt(error, where="a webhook's record") from None


def decode_event(fields: list[bytes]) -> WebhookEvent:
    """An event of the values type, subject, time, metadata and trace. Raises CorruptRecord."""
    try:
        kind, subject_id, at_ms, metadata, trace = fields
        return WebhookEvent(
            kind.decode(),
            subject_id.decode(),
            int(at_ms),
            _TEXTS.validate_json(metadata or b"{}"),
            _TEXTS.validate_json(trace or b"{}"),
        )
    except ValueError as error:  # pydantic's is one too
        raise CorruptRecord(f"an event in an outbox: {error}") from error


def body_of(event: WebhookEvent) -> str:
    """What a webhook is sent: the same text at every attempt. It is thin: the rest is asked for with a key."""
    at = datetime.fromtimestamp(event.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    data = {"id": event.subject_id, "status": event.status, "metadata": dict(event.metadata)}
    told = {"type": event.type, "timestamp": at.replace("+00:00", "Z"), "data": data}
    return json.dumps(told, separators=(",", ":"))
