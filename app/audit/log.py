"""The audit log: who did what to whom, written before it is done and again when it has ended."""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.audit.codec import decode_record, encode_record
from app.audit.keys import journal_key
from app.domain.audit import AuditRecord, Deed, Fact, Journal, Outcome
from app.errors import CorruptRecord, ServiceError
from app.redis.errors import redis_errors
from app.redis.replicas import Replicas
from app.redis.scripts import load_script
from app.settings import Settings

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AuditLimits:
    """How many records each journal holds at most, and for how long."""

    max_records: int
    ttl_s: int

    @classmethod
    def of(cls, settings: Settings) -> "AuditLimits":
        """As the settings say."""
        return cls(settings.max_audit_records, settings.audit_ttl_s)


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Some records, each with its id, which begins with when it was written in Unix milliseconds."""

    records: tuple[tuple[str, AuditRecord], ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which records: of one journal, at most so many, by time, those behind an id."""

    journal: Journal
    limit: int
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None


class AuditLog:
    """Writes and reads. A deed that cannot be written down is not done: `begin` raises StoreUnavailable or NotReplicated.

    With `is_logged` every record goes into the process's own log too, which can be kept where no access to Redis reaches it.
    """

    def __init__(
        self,
        redis: Redis,
        limits: AuditLimits,
        *,
        clock_ms: Callable[[], int],
        replicas: Replicas | None = None,
        is_logged: bool = False,
    ) -> None:
        self._redis = redis
        self._is_logged = is_logged
        self._limits = limits
        self._clock_ms = clock_ms
        self._replicas = replicas or Replicas(redis)
        self._write = load_script(redis, "app.audit", "write")

    async def begin(self, deed: Deed, *, journal: Journal) -> "OpenAct":
        """Writes that a deed is about to be done. Raises StoreUnavailable and NotReplicated: then do not do it."""
        act_id = secrets.token_hex(8)
        await self._add(journal, AuditRecord(act_id, deed, "begun"))
        return OpenAct(self, journal, act_id, deed)

    @asynccontextmanager
    async def during(self, deed: Deed, *, journal: Journal) -> AsyncIterator["OpenAct"]:
        """A deed that is done within the context: begun before it, done after it, or refused, or failed."""
        act = await self.begin(deed, journal=journal)
        try:
            yield act
        except ServiceError as error:
            await act.end("refused", code=error.code)
            raise
        except BaseException:
            await act.end("failed")
            raise
        await act.end("done")

    async def refuse(self, deed: Deed, *, code: str, **facts: Fact) -> None:
        """Writes that somebody was not allowed to do something. It was not done, so an error is logged and no more."""
        await self.add_ending(
            Journal.REFUSED, AuditRecord(secrets.token_hex(8), deed, "refused", code, facts)
        )

    async def add_ending(self, journal: Journal, record: AuditRecord) -> None:
        """Writes how something ended. What is done cannot be undone for the lack of a record: an error is logged."""
        try:
            await self._add(journal, record)
        except (ServiceError, RedisError) as error:
            _log.error("audit_record_lost", act=record.deed.act, act_id=record.act_id, error=str(error))

    @redis_errors
    async def read(self, query: AuditQuery) -> AuditPage:
        """Records that are not too old. One that cannot be read is left out and logged. Raises StoreUnavailable."""
        name, after = journal_key(query.journal), query.after
        oldest = f"{self._oldest_ms()}-0"
        found: Any
        if query.order == "asc":
            first = f"({after}" if after and _key_of(after) >= _key_of(oldest) else oldest
            found = await self._redis.xrange(name, min=first, count=query.limit + 1)
        else:
            last = f"({after}" if after else "+"
            is_first = after is not None and _key_of(after) == (
                0,
                0,
            )  # nothing is before it, and Redis would say so
            found = (
                []
                if is_first
                else await self._redis.xrevrange(name, max=last, min=oldest, count=query.limit + 1)
            )
        records = []
        for entry_id, fields in found[: query.limit]:
            try:
                records.append((entry_id.decode(), decode_record(fields)))
            except CorruptRecord as error:
                _log.error("audit_record_left_out", record_id=entry_id.decode(), reason=error.message)
        return AuditPage(tuple(records), len(found) > query.limit)

    @redis_errors
    async def _add(self, journal: Journal, record: AuditRecord) -> None:
        if self._is_logged:
            _tell(journal, record)
        limits = self._limits
        arguments: list[Any] = [secrets.token_hex(8), encode_record(record), limits.max_records]
        arguments += [f"{self._oldest_ms()}-0", 1000 * limits.ttl_s]
        (await self._replicas.run(self._write, [journal_key(journal)], arguments)).checked()

    def _oldest_ms(self) -> int:
        return max(0, self._clock_ms() - 1000 * self._limits.ttl_s)


class OpenAct:
    """A deed that was begun. It ends once."""

    def __init__(self, log: AuditLog, journal: Journal, act_id: str, deed: Deed) -> None:
        self._log = log
        self._journal = journal
        self._act_id = act_id
        self._deed = deed
        self._facts: dict[str, Fact] = {}
        self._is_open = True

    def note(self, **facts: Fact) -> None:
        """What is to be told with its end: numbers, ids, words."""
        self._facts |= facts

    async def end(self, outcome: Outcome, *, code: str | None = None) -> None:
        """Writes how it ended; a second time does nothing. An error is logged: what is done is done."""
        if self._is_open:
            self._is_open = False
            record = AuditRecord(self._act_id, self._deed, outcome, code, self._facts)
            await self._log.add_ending(self._journal, record)


def _tell(journal: Journal, record: AuditRecord) -> None:
    deed = record.deed
    _log.info(
        "audit",
        journal=journal.value,
        act_id=record.act_id,
        act=deed.act,
        actor=deed.actor,
        actor_tenant=deed.actor_tenant,
        tenant_id=deed.tenant,
        target=deed.target,
        outcome=record.outcome,
        code=record.code,
        facts=dict(record.facts),
    )


def _key_of(record_id: str) -> tuple[int, int]:
    at_ms, _, number = record_id.partition("-")
    return int(at_ms), int(number)
