"""Events on their way to receivers that answer, fail, hang, move and go away."""

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import pytest
from patience import eventually
from processes import free_port
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from standardwebhooks import Webhook as Verifier

from app.domain.ids import TenantId
from app.errors import StoreUnavailable
from app.redis.cancelling import end_task
from app.webhooks.deliverer import MAX_RETRY_AFTER_S, PAUSES_S
from app.webhooks.keys import OUTBOX_TTL_S, outbox_key
from app.webhooks.outbox import Outbox
from app.webhooks.sender import read_retry_after

pytestmark = pytest.mark.anyio

BOLT = TenantId("bolt")
NO_DATE = "Mon, 99 Feb 1000000000000000000000000000000 24:59:59 +2359"  # its year is no number of a date


async def test_an_end_is_told_once_and_signed(office, make_receiver):
    """The verifier of Standard Webhooks takes it; the body names the job, and the client's own metadata."""
    receiver = await make_receiver()
    webhook = await office.hook(receiver)
    job_id = await office.end_job(order="ä/7", empty="")
    await office.deliver(office.deliverer())
    [message] = receiver.messages
    assert Verifier(webhook.secret).verify(message.body, message.headers) == message.told
    assert message.is_signed_with(webhook.secret)
    at = message.told.pop("timestamp")
    assert at.endswith("Z")
    data = {"id": job_id, "status": "cancelled", "metadata": {"order": "ä/7", "empty": ""}}
    assert message.told | {"timestamp": at} == {"type": "job.cancelled", "timestamp": at, "data": data}
    assert (message.path, message.headers["content-type"]) == ("/hook", "application/json")
    assert office.count("delivered") == 1
    assert await office.leftovers() == []


async def test_every_webhook_of_the_tenant_is_told_and_no_other(office, make_receiver):
    """Each gets a message of its own id; another tenant's events are not among them, nor what came before."""
    first, second, other = [await make_receiver() for _ in range(3)]
    await office.end_job()
    await office.hook(first)
    await office.hook(other, BOLT)
    early = await office.end_job()
    await office.hook(second)
    late, theirs = await office.end_job(), await office.end_job(BOLT)
    await office.deliver(office.deliverer())
    told = [{message.told["data"]["id"] for message in each.messages} for each in (first, second, other)]
    assert told == [{early, late}, {late}, {theirs}]
    ids = [message.message_id for each in (first, second, other) for message in each.messages]
    assert len(set(ids)) == 4


async def test_what_fails_is_tried_again_under_the_same_id(office, make_receiver):
    """After the pauses and not before; the body stays, the time and so the signature are new."""
    receiver = await make_receiver(500, 503)
    webhook = await office.hook(receiver)
    await office.end_job()
    deliverer = office.deliverer()
    await office.deliver(deliverer)
    for number, pause_s in enumerate(PAUSES_S[:2], start=1):
        await office.deliver(deliverer, after_s=pause_s - 1)
        assert len(receiver.messages) == number
        await office.deliver(deliverer, after_s=1)
        assert len(receiver.messages) == number + 1
    await office.deliver(deliverer, after_s=86_400)
    assert len(receiver.messages) == 3
    assert len({message.message_id for message in receiver.messages}) == 1
    assert len({message.body for message in receiver.messages}) == 1
    assert len({message.headers["webhook-timestamp"] for message in receiver.messages}) == 3
    assert all(message.is_signed_with(webhook.secret) for message in receiver.messages)
    assert (office.count("rejected"), office.count("delivered")) == (2, 1)


@pytest.mark.parametrize(
    ("asked", "wait_s"), [("100", 110), ("999999", 1.1 * MAX_RETRY_AFTER_S), ("1", PAUSES_S[0])]
)
async def test_a_receiver_says_when_to_come_again(office, make_receiver, asked, wait_s):
    """Not before that, nor much later; at most after some hours, and never sooner than without it."""
    receiver = await make_receiver((429, asked))
    await office.hook(receiver)
    await office.end_job()
    deliverer = office.deliverer()
    await office.deliver(deliverer)
    await office.deliver(deliverer, after_s=wait_s - 2)
    assert len(receiver.messages) == 1
    await office.deliver(deliverer, after_s=3)
    assert (len(receiver.messages), office.count("delivered")) == (2, 1)


@pytest.mark.parametrize(
    ("text", "wanted_s"),
    [
        ("120", 120),
        ("0", 0),
        ("", 0),
        ("-5", 0),
        ("1.5", 0),
        ("soon", 0),
        ("\u0661", 0),
        ("9" * 5000, 999_999_999),
        ("Thu, 01 Jan 1970 00:20:00 GMT", 200),
        ("Thu, 01 Jan 1970 00:20:00 -0000", 200),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Thu, 32 Jan 1970 00:00:00 GMT", 0),
        (NO_DATE, 0),
    ],
)
def test_what_retry_after_means(text, wanted_s):
    """Seconds or a date; what is neither, or lies in the past, asks for nothing."""
    assert read_retry_after(text, now_ms=1_000_000) == wanted_s


@pytest.mark.parametrize(("status", "outcome"), [(200, "delivered"), (500, "rejected")])
async def test_a_retry_after_that_is_no_date_settles_nothing(office, make_receiver, status, outcome):
    """What was heard is over, and what was not waits for its usual pause; the log has no failure of ours."""
    receiver = await make_receiver((status, NO_DATE), 200)
    await office.hook(receiver)
    await office.end_job()
    deliverer = office.deliverer()
    await office.deliver(deliverer)
    assert office.count(outcome) == 1
    await office.deliver(deliverer, after_s=PAUSES_S[0])
    assert (len(receiver.messages), office.count("delivered")) == (1 if status == 200 else 2, 1)


async def test_while_a_secret_is_changed_both_sign(office, make_receiver):
    """What waited is told too, signed by either in the time of grace; after it by the new one alone."""
    receiver = await make_receiver(500)
    old = await office.hook(receiver)
    await office.end_job()
    deliverer = office.deliverer()
    await office.deliver(deliverer)
    new = await office.store().rotate(old.tenant_id, old.webhook_id, grace_s=3600)
    await office.deliver(deliverer, after_s=PAUSES_S[0])
    await office.end_job()
    await office.deliver(deliverer, after_s=3600)
    before, within, after = receiver.messages
    assert before.headers["webhook-signature"].count("v1,") == 1
    for secret in (old.secret, new.secret):
        assert Verifier(secret).verify(within.body, within.headers) == within.told
    assert within.message_id == before.message_id
    assert after.is_signed_with(new.secret)
    assert not after.is_signed_with(old.secret)


class _InTurn:
    """Sends with one sender after the other."""

    def __init__(self, *senders):
        self._senders = list(senders)

    async def send(self, delivery, *, now_ms):
        """As the next one does."""
        return await self._senders.pop(0).send(delivery, now_ms=now_ms)


@pytest.mark.parametrize("answer", ["close", "hang", "redirect", 404, 301, 199])
async def test_only_2xx_is_an_answer(office, make_receiver, answer):
    """Anything else comes again; a redirect is not followed."""
    receiver = await make_receiver(answer)
    await office.hook(receiver)
    await office.end_job()
    short, patient = replace(office, timeout_s=4.0).sender(), office.sender()
    first = short if answer == "hang" else patient
    deliverer = office.deliverer(sender=_InTurn(first, patient))
    await office.deliver(deliverer)
    assert [message.path for message in receiver.messages] == ["/hook"]
    await office.deliver(deliverer, after_s=PAUSES_S[0])
    assert [message.path for message in receiver.messages] == ["/hook", "/hook"]
    assert office.count("delivered") == 1


async def test_an_answer_is_not_read_to_its_end(office, make_receiver):
    """A body without an end holds up nobody."""
    receiver = await make_receiver(then="endless")
    await office.hook(receiver)
    await office.end_job()
    await office.deliver(office.deliverer())
    assert (len(receiver.messages), office.count("delivered")) == (1, 1)


async def test_nobody_listens(office, make_receiver):
    """No connection is no answer; what is told later is told then."""
    receiver = await make_receiver()
    port = free_port()
    await office.store().create(TenantId("acme"), f"http://127.0.0.1:{port}/hook")
    await office.end_job()
    deliverer = office.deliverer()
    await office.deliver(deliverer)
    assert office.count("unreachable") == 1
    again = await asyncio.start_server(receiver.serve, "127.0.0.1", port)
    await office.deliver(deliverer, after_s=PAUSES_S[0])
    again.close()
    assert len(receiver.messages) == 1


async def test_gone_disables(office, make_receiver):
    """After 410 nothing is told, what waited is forgotten; once enabled, it is told what happens from then on."""
    receiver = await make_receiver(500, 410)
    webhook = await office.hook(receiver)
    await office.end_job()
    deliverer = office.deliverer()
    await office.deliver(deliverer)
    await office.end_job()
    await office.deliver(deliverer)
    assert (await office.store().get(webhook.tenant_id, webhook.webhook_id)).disabled_at_ms is not None
    await office.end_job()
    await office.deliver(deliverer, after_s=600)
    assert len(receiver.messages) == 2
    assert await office.leftovers() == []
    await office.store().enable(webhook.tenant_id, webhook.webhook_id)
    last = await office.end_job()
    await office.deliver(deliverer, after_s=600)
    assert [message.told["data"]["id"] for message in receiver.messages[2:]] == [last]


async def test_a_deleted_webhook_is_told_nothing_more(office, make_receiver):
    """What was to be tried again goes at once, also where an attempt is under way."""
    receiver = await make_receiver(500, "hang")
    webhook = await office.hook(receiver)
    for _ in range(2):
        await office.end_job()
    deliverer = office.deliverer()
    await deliverer.look()
    await eventually(lambda: len(receiver.messages) == 2)
    await office.store().delete(webhook.tenant_id, webhook.webhook_id)
    assert await office.leftovers() == []
    receiver.hangs_up.set()
    await deliverer.settle()
    await office.deliver(deliverer, after_s=600)
    assert len(receiver.messages) == 2
    assert await office.leftovers() == []


async def test_two_days_are_the_end(office, make_receiver):
    """Attempts get rarer, about a dozen in all, and the event is given up; nothing of it stays."""
    receiver = await make_receiver(then=500)
    await office.hook(receiver)
    await office.end_job()
    deliverer = office.deliverer()
    passed_s = 0
    while passed_s < OUTBOX_TTL_S + 30_000:
        step_s = 5 if passed_s < 300 else 1800
        await office.deliver(deliverer, after_s=step_s)
        passed_s += step_s
    assert 10 <= len(receiver.messages) <= 14
    assert office.count("given_up") == 1
    assert await office.leftovers() == []


async def test_an_event_of_the_day_before_yesterday_is_not_told(office, make_receiver):
    """Where nobody delivered for two days, receivers do not hear of what they have forgotten; it is counted."""
    receiver = await make_receiver()
    await office.hook(receiver)
    await office.end_job()
    await office.deliver(office.deliverer(), after_s=OUTBOX_TTL_S + 60)
    assert receiver.messages == []
    assert await office.redis.xlen("sparke:{t:acme}:outbox") == 0


async def test_what_waits_too_long_is_dropped(office, make_receiver):
    """Events that were put off beyond their two days, because nobody delivered meanwhile, go at once, and are counted."""
    receiver = await make_receiver(then=500)
    await office.hook(receiver)
    for _ in range(10):
        await office.end_job()
    await office.deliver(office.deliverer())
    assert len(receiver.messages) == 10
    await office.redis.delete("sparke:{t:acme}:webhook-lease")
    office.ahead_ms += 1000 * (OUTBOX_TTL_S + 60)
    await office.deliverer().look()
    assert office.count("dropped") == 10
    assert await office.leftovers() == []


async def test_nothing_is_taken_for_a_webhook_that_is_gone(office, make_receiver):
    """Who read of it before it was deleted finds nothing, and leaves nothing."""
    webhook = await office.hook(await make_receiver())
    await office.end_job()
    await office.store().delete(webhook.tenant_id, webhook.webhook_id)
    taken = await Outbox(office.redis, clock_ms=office.clock_ms).take(webhook, 4)
    assert (taken.deliveries, taken.num_waiting) == ((), 0)
    assert await office.leftovers() == []


async def test_a_backlog_needs_one_message(office, make_receiver):
    """Where there is more than may be sent at a time, each end of an attempt brings on the next."""
    receiver = await make_receiver()
    await office.hook(receiver)
    deliverer = office.deliverer(poll_s=600.0)
    running = asyncio.create_task(deliverer.run())
    await eventually(lambda: office.redis.exists("sparke:{t:acme}:webhook-lease"))
    for _ in range(15):
        await office.end_job()
    deliverer.hear(b"sparke:finished", b"acme/any")
    await eventually(lambda: len(receiver.messages) >= 15)
    await end_task(running)
    await deliverer.close()


async def test_a_hanging_webhook_holds_up_no_other(office, make_receiver):
    """While one hangs, another gets all its messages; to the one that hangs few are sent at a time, then one."""
    hanging, quick = await make_receiver(then="hang"), await make_receiver()
    await office.hook(hanging)
    await office.hook(quick)
    for _ in range(20):
        await office.end_job()
    deliverer = office.deliverer()

    async def has_all():
        await deliverer.look()
        return len(quick.messages) >= 20

    await eventually(has_all)
    await eventually(lambda: hanging.num_now >= 4)
    assert hanging.num_now == hanging.most_at_once == 4
    assert quick.most_at_once <= 4
    assert office.metrics.registry.get_sample_value("sparke_webhooks_waiting") >= 20
    assert office.metrics.registry.get_sample_value("sparke_webhooks_oldest_seconds") > 0

    async def owes_one_alone():
        await deliverer.look()
        return office.metrics.registry.get_sample_value("sparke_webhooks_owed") == 1

    await eventually(owes_one_alone)
    hanging.hangs_up.set()
    await deliverer.settle()
    hanging.hangs_up.clear()
    await deliverer.look()
    await eventually(lambda: hanging.num_now)
    await asyncio.sleep(0.2)  # for what must not follow
    assert hanging.num_now == 1
    await deliverer.close()


async def test_one_process_at_a_time(office, make_receiver):
    """While one delivers for a tenant, another starts nothing; once it stops in order, the other goes on at once."""
    receiver = await make_receiver(*["hang"] * 4)
    await office.hook(receiver)
    for _ in range(8):
        await office.end_job()
    one, other = office.deliverer(), office.deliverer()
    await one.look()
    await eventually(lambda: receiver.num_now >= 4)
    await office.deliver(other)
    assert len(receiver.messages) == 4
    await one.close()
    await office.deliver(other)
    assert len(receiver.messages) == 8
    assert max(Counter(message.message_id for message in receiver.messages).values()) == 1


class _Breaking(Redis):
    """Loses its connection for good at some command, before or after the server has done it."""

    left = 0
    is_done = False

    async def execute_command(self, *arguments, **options):
        """The command, or a lost connection."""
        if self.left == 0:
            if self.is_done:
                self.is_done = False
                await super().execute_command(*arguments, **options)
            raise RedisConnectionError("lost")
        self.left -= 1
        return await super().execute_command(*arguments, **options)


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("num_commands", range(14))
async def test_a_deliverer_that_dies_loses_nothing(office, make_receiver, num_commands, is_done):
    """Between any two commands: every event is told by the next process, what is told twice has the same id."""
    receivers = [await make_receiver(), await make_receiver(500)]
    for receiver in receivers:
        await office.hook(receiver)
    jobs = {await office.end_job() for _ in range(3)}
    dying = _Breaking(connection_pool=office.redis.connection_pool)
    dying.left, dying.is_done = num_commands, is_done
    deliverer = office.deliverer(dying)
    for _ in range(2):
        with suppress(StoreUnavailable):
            await deliverer.look()
        await deliverer.settle()
    await office.redis.delete("sparke:{t:acme}:webhook-lease")  # it has run out
    jobs.add(await office.end_job())
    successor = office.deliverer()
    for _ in range(3):
        await office.deliver(successor, after_s=31)
    for receiver in receivers:
        ids = {message.message_id: message.told["data"]["id"] for message in receiver.messages}
        assert set(ids.values()) == jobs
        assert len(ids) == len(jobs)
    assert await office.leftovers() == []


async def test_a_deliverer_killed_amid_an_attempt_loses_nothing(office, make_receiver):
    """The receiver heard it, nobody noted that: it hears it again, under the same id."""
    receiver = await make_receiver("hang")
    await office.hook(receiver)
    await office.end_job()
    killed = office.deliverer()
    await killed.look()
    await eventually(lambda: receiver.messages)
    await killed.close()
    await office.deliver(office.deliverer(), after_s=31)
    assert len(receiver.messages) == 2
    assert len({message.message_id for message in receiver.messages}) == 1


async def test_an_event_that_cannot_be_read_holds_up_no_other(office, make_receiver):
    """It is passed over, and the next is told."""
    receiver = await make_receiver()
    webhook = await office.hook(receiver)
    await office.redis.xadd("sparke:{t:acme}:outbox", {"type": "job.failed", "at_ms": "soon"})
    await office.redis.xadd("sparke:{t:acme}:outbox", {"other": "fields"})
    await office.redis.hset("sparke:{t:acme}:webhooks", "wh_odd", b"{}")
    job_id = await office.end_job()
    await office.deliver(office.deliverer())
    assert [message.told["data"]["id"] for message in receiver.messages] == [job_id]
    assert [found.webhook_id for found in await office.store().list_webhooks(webhook.tenant_id)] == [
        webhook.webhook_id
    ]


class _Flaky:
    """Raises what no sender raises, then works."""

    def __init__(self, sender):
        self._sender = sender
        self.num_calls = 0

    async def send(self, delivery, *, now_ms):
        self.num_calls += 1
        if self.num_calls == 1:
            raise RuntimeError("a fault of ours")
        return await self._sender.send(delivery, now_ms=now_ms)


async def test_a_running_deliverer_hears_and_survives(office, make_receiver):
    """A message brings an event there long before the next look at all; what a fault of ours left is told later."""
    receiver = await make_receiver()
    await office.hook(receiver)
    deliverer = office.deliverer(sender=_Flaky(office.sender()), poll_s=600.0)
    await office.end_job()
    running = asyncio.create_task(deliverer.run())
    await asyncio.sleep(0.3)
    assert receiver.messages == []
    for num_messages in (1, 2):
        deliverer.hear(b"sparke:finished", f"acme/{await office.end_job()}".encode())
        await eventually(lambda: len(receiver.messages) >= num_messages)  # noqa: B023 - called at once
    office.ahead_ms += 31_000
    deliverer.hear(b"sparke:finished", b"acme/any")
    await eventually(lambda: len(receiver.messages) >= 3)
    assert not running.done()
    await end_task(running)
    await deliverer.close()


async def test_an_event_has_the_trace_of_its_request_and_strangers_get_none_that_nobody_records(
    office, make_receiver
):
    """It lies in the outbox for the attempts' spans. Where no spans are exported no header goes out, whoever sent one in.

    What others had to say of it, which may be 8 KB, does not lie there twenty thousand times.
    """
    parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    receiver = await make_receiver()
    webhook = await office.hook(receiver)
    await office.end_job(trace={**parent, "tracestate": "a=b"})
    await office.end_job()
    outbox = Outbox(office.redis, clock_ms=office.clock_ms)
    taken = await outbox.take(webhook, 2)
    assert [delivery.event.trace for delivery in taken.deliveries] == [parent, {}]
    await office.deliver(office.deliverer(), after_s=31)
    assert len(receiver.messages) == 2
    assert [name for message in receiver.messages for name in message.headers if "trace" in name] == []


async def test_an_event_that_an_older_release_wrote_is_delivered(office, make_receiver):
    """It has no trace."""
    receiver = await make_receiver()
    await office.hook(receiver)
    event = {"type": "job.failed", "id": "job_1", "at_ms": str(office.clock_ms()), "metadata": "{}"}
    await office.redis.xadd(outbox_key(TenantId("acme")), event)
    await office.deliver(office.deliverer())
    [message] = receiver.messages
    assert message.told["data"] == {"id": "job_1", "status": "failed", "metadata": {}}
