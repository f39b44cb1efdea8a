"""One attempt to tell a webhook of an event: signed as Standard Webhooks says, to the address that was checked."""

import asyncio
import math
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from importlib.metadata import version
from typing import Protocol

import httpx
import structlog
from standardwebhooks import Webhook as Signer

from app.errors import InvalidValue
from app.telemetry.tracing import shown
from app.webhooks.codec import body_of
from app.webhooks.outbox import Delivery
from app.webhooks.targets import Target, Targets

TIMEOUT_S = 10.0  # for a whole attempt
_CONNECT_TIMEOUT_S = 4.0  # for each address
_MAX_ANSWER_BYTES = 1024
_GONE = 410

_log = structlog.get_logger(__name__)


class Outcome(StrEnum):
    """What became of an attempt, or of an event."""

    DELIVERED = "delivered"  # 2xx
    REJECTED = "rejected"  # another status; redirects are not followed
    UNREACHABLE = "unreachable"  # no connection, no answer in time, or none that is HTTP
    REFUSED = "refused"  # the URL leads where webhooks may not go
    GONE = "gone"  # 410: the webhook wants no more
    GIVEN_UP = "given_up"  # the event, after the last attempt
    DROPPED = "dropped"  # the event, too old before it was tried again


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of an attempt, and for how long its receiver asks to be left alone.

    `status` is the answer's, None where there was none; `fault` is then the class of what went wrong.
    """

    outcome: Outcome
    retry_after_s: int = 0
    status: int | None = None
    fault: str = ""


class Sender(Protocol):
    """Makes attempts."""

    async def send(self, delivery: Delivery, *, now_ms: int) -> Attempt:
        """Tells the webhook once. Raises nothing of HTTP."""


class HttpSender:
    """Sends each message over a connection of its own: nothing is shared between webhooks, not even by one address."""

    def __init__(
        self, targets: Targets, *, tls: ssl.SSLContext | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._targets = targets
        self._tls = tls or httpx.create_ssl_context(trust_env=False)
        self._timeout_s = timeout_s
        self._user_agent = f"sparke/{version('sparke')}"

    async def send(self, delivery: Delivery, *, now_ms: int) -> Attempt:
        """Tells the webhook once, within `timeout_s`."""
        retry_after_s, retry_after, status, fault = 0, "", None, ""
        try:
            async with asyncio.timeout(self._timeout_s):
                target = await self._targets.find(delivery.webhook.url)
                status, retry_after = await self._post_to_any(target, delivery, now_ms)
        except InvalidValue as error:
            outcome, found, fault = Outcome.REFUSED, error.message, type(error).__name__
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:  # asyncio's TimeoutError is an OSError
            fault = type(error).__name__
            outcome, found = Outcome.UNREACHABLE, f"{fault}: {error}"
        else:
            outcome, found = _judge(status), f"status {status}"
        if outcome is not Outcome.DELIVERED:
            retry_after_s = read_retry_after(retry_after, now_ms=now_ms)
            _log.info(
                "webhook_not_delivered",
                webhook_id=delivery.webhook.webhook_id,
                message_id=delivery.message_id,
                outcome=outcome,
                found=found,
            )
        return Attempt(outcome, retry_after_s, status, fault)

    async def _post_to_any(self, target: Target, delivery: Delivery, now_ms: int) -> tuple[int, str]:
        *others, last = target.addresses
        for address in others:
            try:
                return await self._post(target.url, address, delivery, now_ms=now_ms)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await self._post(target.url, last, delivery, now_ms=now_ms)

    async def _post(
        self, url: httpx.URL, address: str, delivery: Delivery, *, now_ms: int
    ) -> tuple[int, str]:
        """The status, and the header Retry-After. The connection goes to `address`; Host and the name that TLS asks for stay the URL's."""
        body = body_of(delivery.event)
        headers = {
            "host": url.netloc.decode("ascii"),
            "content-type": "application/json",
            "user-agent": self._user_agent,
            **sign(delivery, body, now_ms=now_ms),
            **shown(),
        }
        client = httpx.AsyncClient(
            verify=self._tls,
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(self._timeout_s, connect=_CONNECT_TIMEOUT_S),
        )
        name = {"sni_hostname": url.raw_host.decode("ascii")}
        async with (
            client,
            client.stream(
                "POST", url.copy_with(host=address), content=body.encode(), headers=headers, extensions=name
            ) as answer,
        ):
            num_bytes = 0
            async for part in answer.aiter_raw(_MAX_ANSWER_BYTES):
                num_bytes += len(part)
                if num_bytes >= _MAX_ANSWER_BYTES:
                    break
            return answer.status_code, answer.headers.get("retry-after", "")


def sign(delivery: Delivery, body: str, *, now_ms: int) -> dict[str, str]:
    """The headers by which a receiver knows the sender, the message and its age: a signature by each secret that holds."""
    at = datetime.fromtimestamp(now_ms // 1000, UTC)
    secrets = delivery.webhook.secrets_at(now_ms)
    return {
        "webhook-id": delivery.message_id,
        "webhook-timestamp": str(now_ms // 1000),
        "webhook-signature": " ".join(Signer(each).sign(delivery.message_id, at, body) for each in secrets),
    }


def read_retry_after(text: str, *, now_ms: int) -> int:
    """The seconds from now that a header Retry-After asks for, as a number or a date; 0 for what is neither or past."""
    if text.isascii() and text.isdecimal():
        return int(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0
    return max(0, math.ceil(at.replace(tzinfo=at.tzinfo or UTC).timestamp() - now_ms / 1000))


def _judge(status: int) -> Outcome:
    if status == _GONE:
        return Outcome.GONE
    return Outcome.DELIVERED if httpx.codes.is_success(status) else Outcome.REJECTED
