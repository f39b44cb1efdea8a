"""Delivers what lies in outboxes: at least once, in no promised order, until it is heard or two days old."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable

import structlog
from opentelemetry.trace import SpanKind, StatusCode

from app.domain.ids import TenantId, WebhookId
from app.domain.webhook import Webhook
from app.errors import NotFound, ServiceError
from app.redis.cancelling import end_task, wait_at_most
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import Told, context_of, note, span
from app.webhooks.keys import OUTBOX_TTL_S
from app.webhooks.outbox import Delivery, Outbox, Taken
from app.webhooks.sender import Attempt, Outcome, Sender
from app.webhooks.store import WebhookStore

POLL_S = 2.0
PAUSES_S = (5, 30, 120, 600, 3600, 21_600)  # between attempts; the last one again and again
MAX_RETRY_AFTER_S = 21_600  # what a receiver's Retry-After counts for at most
_JITTER = 0.2  # a pause is so much longer or shorter, that what failed together does not come back together
_MAX_RUNNING = 64  # attempts of this process
_MAX_RUNNING_SLOW = 32  # of them, to webhooks whose last attempt was not answered
_MAX_RUNNING_EACH = 4  # to one webhook; one that does not answer gets one at a time
_STOP_S = 2.0
_DICE = random.SystemRandom()  # nobody else draws from it, so nobody can tell

_log = structlog.get_logger(__name__)


class Deliverer:
    """What each API process runs; a tenant's outbox is one process' business at a time, by a lease."""

    def __init__(
        self,
        store: WebhookStore,
        outbox: Outbox,
        sender: Sender,
        metrics: Metrics,
        *,
        clock_ms: Callable[[], int],
        jitter: Callable[[], float] = _DICE.random,
        poll_s: float = POLL_S,
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._sender = sender
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._jitter = jitter
        self._poll_s = poll_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: Counter[WebhookId] = Counter()
        self._slow: set[WebhookId] = set()
        self._held: dict[TenantId, dict[WebhookId, Taken]] = {}
        self._news: set[TenantId] = set()
        self._is_news = asyncio.Event()
        self._num_looks = 0

    async def run(self) -> None:
        """Looks every `poll_s`, and at once where there is news. For ever: what fails is logged, and tried again."""
        look_at_all_s = 0.0
        while True:
            self._is_news.clear()
            news, self._news = self._news, set()
            is_time = time.monotonic() >= look_at_all_s
            if is_time:
                look_at_all_s = time.monotonic() + self._poll_s
            try:
                await self.look(None if is_time else news)
            except ServiceError as error:
                _log.warning("webhook_look_failed", error=error.message)
            except Exception:  # noqa: BLE001 - this must not be the last look
                _log.exception("webhook_look_failed")
            await wait_at_most(self._is_news, max(0.0, look_at_all_s - time.monotonic()))

    def hear(self, _channel: bytes, member: bytes) -> None:
        """Takes a message `<tenant>/…` that something has ended. It may be lost: there are looks at all."""
        self._wake(TenantId(member.partition(b"/")[0].decode(errors="replace")))

    async def look(self, tenants: Iterable[TenantId] | None = None) -> None:
        """Starts what is due of some tenants, or of all, as far as there is room. Raises StoreUnavailable."""
        listed = await self._store.list_tenants() if tenants is None else list(tenants)
        self._num_looks += 1
        first = self._num_looks % max(
            len(listed), 1
        )  # where room is short, it is another one's turn each time
        for tenant_id in (*listed[first:], *listed[:first]):
            await self._look_at(tenant_id)
        self._report()

    async def settle(self) -> None:
        """Returns when nothing that was started is under way any more."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Ends attempts, after a moment's grace, and leases. What was not settled is told again, by another process."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_STOP_S)
        for task in tuple(self._tasks):
            await end_task(task)
        for tenant_id in self._held:
            try:
                await self._outbox.let_go(tenant_id)
            except ServiceError:  # it ends by itself
                return

    async def _look_at(self, tenant_id: TenantId) -> None:
        webhooks = await self._outbox.claim(tenant_id)
        if not webhooks:
            self._held.pop(tenant_id, None)
            if webhooks is not None:
                await self._store.forget(tenant_id)
                await self._outbox.let_go(tenant_id)
            return
        held = self._held.get(tenant_id, {})
        self._held[tenant_id] = {}
        for webhook in webhooks:
            if webhook.disabled_at_ms is not None:
                continue
            room = self._room_for(webhook)
            if room > 0:
                taken = await self._outbox.take(webhook, room)
                self._count(Outcome.DROPPED, taken.num_dropped)
                self._held[tenant_id][webhook.webhook_id] = taken
                for delivery in taken.deliveries:
                    self._start(delivery)
            elif webhook.webhook_id in held:
                self._held[tenant_id][webhook.webhook_id] = held[webhook.webhook_id]

    def _room_for(self, webhook: Webhook) -> int:
        """How many attempts more may be made at a time."""
        room, each = _MAX_RUNNING - self._running.total(), _MAX_RUNNING_EACH
        if webhook.webhook_id in self._slow:
            num_slow = sum(self._running[webhook_id] for webhook_id in self._slow)
            room, each = min(room, _MAX_RUNNING_SLOW - num_slow), 1
        return min(room, each - self._running[webhook.webhook_id])

    def _start(self, delivery: Delivery) -> None:
        webhook = delivery.webhook
        self._running[webhook.webhook_id] += 1
        task = asyncio.create_task(self._deliver(delivery), name="webhook")
        self._tasks.add(task)

        def end(ended: asyncio.Task[None]) -> None:
            self._tasks.discard(ended)
            self._running -= Counter({webhook.webhook_id: 1})  # a count of 0 goes
            self._wake(webhook.tenant_id)

        task.add_done_callback(end)

    async def _deliver(self, delivery: Delivery) -> None:
        webhook = delivery.webhook
        try:
            attempt = await self._attempt(delivery)
            self._count(attempt.outcome)
            if attempt.outcome is Outcome.UNREACHABLE:
                self._slow.add(webhook.webhook_id)
            else:
                self._slow.discard(webhook.webhook_id)
            await self._conclude(delivery, attempt)
        except ServiceError as error:  # nothing is lost: it is taken again after a while
            _log.warning("webhook_not_settled", message_id=delivery.message_id, error=error.message)
        except Exception:  # noqa: BLE001 - likewise
            _log.exception("webhook_not_settled", message_id=delivery.message_id)

    async def _attempt(self, delivery: Delivery) -> Attempt:
        """One attempt as a span, in the trace of the request whose job has ended. It says nothing of the URL, which may hold secrets."""
        with span(
            "deliver webhook",
            _told(delivery),
            kind=SpanKind.CLIENT,
            parent=context_of(delivery.event.trace),
        ) as current:
            attempt = await self._sender.send(delivery, now_ms=self._clock_ms())
            note(current, {"outcome": attempt.outcome.value})
            if attempt.status is not None:
                current.set_attribute("http.response.status_code", attempt.status)
            if attempt.fault:
                current.set_attribute("error.type", attempt.fault)
            if attempt.outcome is not Outcome.DELIVERED:
                current.set_status(StatusCode.ERROR)
        return attempt

    async def _conclude(self, delivery: Delivery, attempt: Attempt) -> None:
        webhook, outcome = delivery.webhook, attempt.outcome
        if outcome is Outcome.DELIVERED:
            await self._outbox.end(delivery)
        elif outcome is Outcome.GONE:
            _log.warning("webhook_disabled", tenant_id=webhook.tenant_id, webhook_id=webhook.webhook_id)
            try:
                await self._store.disable(webhook.tenant_id, webhook.webhook_id)
            except NotFound:  # deleted meanwhile
                return
        elif (due_ms := self._next_ms(delivery, attempt.retry_after_s)) is not None:
            await self._outbox.put_off(delivery, due_ms)
        else:
            self._count(Outcome.GIVEN_UP)
            _log.warning("webhook_given_up", message_id=delivery.message_id, webhook_id=webhook.webhook_id)
            await self._outbox.end(delivery)

    def _next_ms(self, delivery: Delivery, retry_after_s: int) -> int | None:
        """When to try again: not before the receiver wants it. None where the event is too old by then."""
        usual_s = PAUSES_S[min(delivery.num_attempts, len(PAUSES_S) - 1)]
        pause_s = usual_s * (1 + _JITTER * (2 * self._jitter() - 1))
        asked_s = min(retry_after_s, MAX_RETRY_AFTER_S) * (1 + _JITTER * self._jitter())
        due_ms = self._clock_ms() + int(1000 * max(pause_s, asked_s))
        return due_ms if due_ms < delivery.event.at_ms + 1000 * OUTBOX_TTL_S else None

    def _wake(self, tenant_id: TenantId) -> None:
        if tenant_id in self._held:
            self._news.add(tenant_id)
            self._is_news.set()

    def _count(self, outcome: Outcome, number: int = 1) -> None:
        self._metrics.webhook_deliveries.labels(outcome).inc(number)

    def _report(self) -> None:
        held = [taken for webhooks in self._held.values() for taken in webhooks.values()]
        self._metrics.webhooks_waiting.set(sum(taken.num_waiting for taken in held))
        self._metrics.webhooks_owed.set(sum(taken.num_waiting > 0 for taken in held))
        oldest = [taken.oldest_at_ms for taken in held if taken.oldest_at_ms is not None]
        age_ms = max(0, self._clock_ms() - min(oldest)) if oldest else 0
        self._metrics.webhooks_oldest_seconds.set(age_ms / 1000)


def _told(delivery: Delivery) -> Told:
    event, webhook = delivery.event, delivery.webhook
    return {
        "tenant_id": webhook.tenant_id,
        "webhook_id": webhook.webhook_id,
        "message_id": delivery.message_id,
        "event": event.type,
        "attempt": delivery.num_attempts + 1,
    }
