"""Webhooks around one Redis, a clock that tests move, and a receiver that answers as it is told."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

import pytest
from patience import PATIENCE_S
from redis.asyncio import Redis

from app.domain.ids import JobId, ModelId, TenantId, make_job_id
from app.domain.job import Job, JobKind, Origin
from app.domain.request import Diversity, GenerationRequest
from app.domain.webhook import Webhook
from app.jobs.store import JobStore
from app.jobs.types import JobLimits
from app.telemetry.metrics import Metrics
from app.webhooks.deliverer import Deliverer
from app.webhooks.outbox import Outbox
from app.webhooks.sender import HttpSender, Sender
from app.webhooks.store import WebhookStore
from app.webhooks.targets import SystemResolver, Targets

ACME = TenantId("acme")


@dataclass(frozen=True)
class Message:
    """What a receiver got."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def told(self) -> dict:
        """The body."""
        return json.loads(self.body)

    @property
    def message_id(self) -> str:
        """The header by which receivers know what they had before."""
        return self.headers["webhook-id"]

    def is_signed_with(self, secret: str) -> bool:
        """Whether the signature is right, by the text of the specification."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = f"{self.message_id}.{self.headers['webhook-timestamp']}.".encode() + self.body
        right = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        return f"v1,{right}" in self.headers["webhook-signature"].split(" ")


@dataclass
class Receiver:
    """A real HTTP server. `answers` are used up in turn, then `then` for ever: a status, or how to misbehave.

    A status with a text has that as Retry-After.
    """

    answers: list[int | str | tuple[int, str]] = field(default_factory=list)
    then: int | str = 200
    messages: list[Message] = field(default_factory=list)
    hangs_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Ends what hangs, as a time-out does."""
    num_now: int = 0
    most_at_once: int = 0
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        self.num_now += 1
        self.most_at_once = max(self.most_at_once, self.num_now)
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.num_now -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        for line in head[1:]:  # values keep their case
            name, _, value = line.partition(": ")
            if name:
                headers[name.lower()] = value
        body = await reader.readexactly(int(headers["content-length"]))
        self.messages.append(Message(head[0].split(" ")[1], headers, body))
        answer = self.answers.pop(0) if self.answers else self.then
        if answer == "close":
            return
        if answer == "hang":
            leaving = asyncio.create_task(reader.read()), asyncio.create_task(self.hangs_up.wait())
            try:
                await asyncio.wait(leaving, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in leaving:
                    each.cancel()
            return
        if answer == "redirect":
            writer.write(
                f"HTTP/1.1 302 Found\r\nlocation: {self.url}/else\r\ncontent-length: 0\r\n\r\n".encode()
            )
        elif answer == "endless":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                writer.write(b"x" * 1024)
                await writer.drain()
        else:
            status, retry_after = answer if isinstance(answer, tuple) else (answer, "")
            more = f"retry-after: {retry_after}\r\n" if retry_after else ""
            writer.write(f"HTTP/1.1 {status} Said\r\n{more}content-length: 2\r\n\r\nok".encode())
        await writer.drain()


@dataclass
class Office:
    """Everything around one Redis. Time is real, and moved on by tests."""

    redis: Redis
    resolver: SystemResolver
    ahead_ms: int = 0
    num_jobs: int = 0
    timeout_s: float = PATIENCE_S
    metrics: Metrics = field(default_factory=Metrics)

    def clock_ms(self) -> int:
        """The time of everybody."""
        return int(time.time() * 1000) + self.ahead_ms

    def store(self) -> WebhookStore:
        """The webhooks."""
        return WebhookStore(self.redis, clock_ms=self.clock_ms)

    def sender(self) -> HttpSender:
        """One that may send to this machine."""
        return HttpSender(Targets(self.resolver, allow_private=True), timeout_s=self.timeout_s)

    def deliverer(
        self, redis: Redis | None = None, sender: Sender | None = None, poll_s: float = 2.0
    ) -> Deliverer:
        """Another process' deliverer, without jitter."""
        used = redis or self.redis
        return Deliverer(
            WebhookStore(used, clock_ms=self.clock_ms),
            Outbox(used, clock_ms=self.clock_ms),
            sender or self.sender(),
            self.metrics,
            clock_ms=self.clock_ms,
            jitter=lambda: 0.5,
            poll_s=poll_s,
        )

    async def hook(self, receiver: Receiver, tenant_id: TenantId = ACME) -> Webhook:
        """A webhook that leads to a receiver."""
        return await self.store().create(tenant_id, f"{receiver.url}/hook")

    async def end_job(
        self, tenant_id: TenantId = ACME, *, trace: Mapping[str, str] | None = None, **metadata: str
    ) -> JobId:
        """A job that is accepted, and ends at once: it is cancelled. `trace` is its request's."""
        self.num_jobs += 1
        request = GenerationRequest(
            ModelId("toy"), "a star", "", 1, 64, 64, 2, 5.0, seed=1, diversity=Diversity(strength=0.5)
        )
        now_ms = self.clock_ms()
        job_id = make_job_id(now_ms, self.num_jobs.to_bytes(8, "big"))
        job = Job(
            tenant_id,
            job_id,
            JobKind.GENERATE,
            request,
            now_ms,
            now_ms + 10**9,
            metadata=metadata,
            origin=Origin("req-1", trace or {}),
        )
        jobs = JobStore(self.redis, JobLimits(), clock_ms=self.clock_ms)
        await jobs.accept(job)
        await jobs.cancel(tenant_id, job_id)
        return job_id

    async def deliver(self, deliverer: Deliverer, *, after_s: float = 0.0) -> None:
        """What is due so much later is delivered, with whatever is due by then."""
        self.ahead_ms += int(after_s * 1000)
        for _ in range(3):
            await deliverer.look()
            await deliverer.settle()

    def count(self, outcome: str) -> float:
        """How often an outcome was counted."""
        return (
            self.metrics.registry.get_sample_value("sparke_webhook_deliveries_total", {"outcome": outcome})
            or 0
        )

    async def leftovers(self) -> list[bytes]:
        """The keys of what waits for webhooks."""
        return [key async for key in self.redis.scan_iter(match="*:webhook:*")]


@pytest.fixture
def resolver():
    """The system's."""
    found = SystemResolver()
    yield found
    found.close()


@pytest.fixture
def office(redis: Redis, resolver: SystemResolver) -> Office:
    """An office on an empty Redis."""
    return Office(redis, resolver)


@pytest.fixture
def make_office(resolver: SystemResolver):
    """An office on a Redis that the test brings."""
    return lambda redis: Office(redis, resolver)


@pytest.fixture
async def make_receiver() -> AsyncIterator[Callable[..., object]]:
    """Starts receivers on free ports of this machine."""
    servers = []

    async def make(*answers: int | str | tuple[int, str], then: int | str = 200) -> Receiver:
        receiver = Receiver(list(answers), then)
        server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
        servers.append(server)
        receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return receiver

    yield make
    for server in servers:
        server.close()
