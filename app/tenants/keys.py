"""API keys: one is shown once, when it is made; only its digest is kept."""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import structlog
from pydantic import TypeAdapter, ValidationError
from redis.asyncio import Redis

from app.domain.ids import TenantId
from app.domain.scope import USUAL_SCOPES, Scope
from app.errors import CorruptRecord, InvalidValue, KeyEnded, NotFound, TenantDeleting, Unauthenticated
from app.redis.errors import redis_errors
from app.redis.replicas import Replicas
from app.redis.scripts import load_script
from app.tenants.names import DELETIONS_KEY, TENANTS_KEY

KEY_ID_FORM = "^[0-9a-f]{8}$"
MAX_NAME_CHARS = 100
MAX_KEY_LIFE_S = 10 * 365 * 86_400
DEFAULT_GRACE_S = 86_400
MAX_GRACE_S = 30 * 86_400

KEY_PREFIX = "sk-sparke-"

_FORM = re.compile(rf"{KEY_PREFIX}([0-9a-f]{{8}})-([A-Za-z0-9_-]{{43}})")
_KEYS = "sparke:api-keys"  # hash of key id → JSON; lives for ever
_USES = "sparke:api-key-uses"  # hash of key id → Unix milliseconds of a use; lives for ever
_WERE_KEYS = "sparke:api-keys-removed"  # there once keys were removed; lives for ever
_PAGE_KEYS = 500
_NOTED_AGAIN_MS = 3_600_000  # a use is written down once in so long, by each process
_NOBODY = hashlib.sha256(b"no such key").hexdigest()

KeyState = Literal["active", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class KeyWish:
    """What a new key shall be: a name to know it by, what it may be used for, how long it lives (None: for ever)."""

    name: str = ""
    scopes: tuple[Scope, ...] = USUAL_SCOPES
    life_s: int | None = None

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NAME_CHARS or not self.name.isprintable():
            raise InvalidValue(
                f"a key's name has at most {MAX_NAME_CHARS} printable characters, got {self.name[:120]!r}",
                param="name",
            )
        if self.life_s is not None and not 1 <= self.life_s <= MAX_KEY_LIFE_S:
            raise InvalidValue(
                f"a key lives 1 to {MAX_KEY_LIFE_S} s, got {self.life_s}", param="expires_in_s"
            )


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is kept of an API key: the SHA-256 of the whole key in hex, never the key. Times are Unix milliseconds.

    Records from before a member was there have its default. `successor_id` is the key that takes this one's place.
    """

    key_id: str
    tenant_id: TenantId
    digest: str
    created_at_ms: int
    revoked_at_ms: int | None = None
    name: str = ""
    scopes: tuple[Scope, ...] = USUAL_SCOPES
    expires_at_ms: int | None = None
    successor_id: str | None = None

    def state(self, now_ms: int) -> KeyState:
        """Whether it works, and why not."""
        if self.revoked_at_ms is not None:
            return "revoked"
        return "expired" if self.expires_at_ms is not None and now_ms >= self.expires_at_ms else "active"


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key, which cannot be shown again, and what is kept of it."""

    key: str
    record: KeyRecord


@dataclass(frozen=True, slots=True)
class UsedKey:
    """What is kept of a key, and when it was used, to about an hour; None: never."""

    record: KeyRecord
    last_used_at_ms: int | None


_RECORD = TypeAdapter(KeyRecord)

_log = structlog.get_logger(__name__)


class KeyStore:
    """API keys of all tenants. The secret has 256 random bits, so a plain digest cannot be searched.

    All methods raise StoreUnavailable where Redis does not answer. New keys and the ends of keys wait for replicas where
    those are asked for: NotReplicated, and they may yet stand.
    """

    def __init__(
        self, redis: Redis, *, clock_s: Callable[[], float] = time.time, replicas: Replicas | None = None
    ) -> None:
        self._redis = redis
        self._replicas = replicas or Replicas(redis)
        self._clock_s = clock_s
        self._noted_at_ms: dict[str, int] = {}
        self._swap = load_script(redis, "app.tenants", "swap")
        self._rotate = load_script(redis, "app.tenants", "rotate")

    async def create(self, tenant_id: TenantId) -> str:
        """A new key of the tenant with the usual scopes. It cannot be shown again."""
        return (await self.issue(tenant_id, KeyWish())).key

    @redis_errors
    async def issue(self, tenant_id: TenantId, wish: KeyWish) -> IssuedKey:
        """A new key of the tenant, which is listed first. Raises TenantDeleting while the tenant is being deleted."""
        if await self._redis.hexists(DELETIONS_KEY, tenant_id):
            raise TenantDeleting(f"tenant {tenant_id} is being deleted; its name is free when that has ended")
        await self._redis.zadd(TENANTS_KEY, {tenant_id: 0})
        while True:
            issued = self._make(tenant_id, wish)
            data = _RECORD.dump_json(issued.record)
            made = await self._replicas.command("HSETNX", _KEYS, issued.record.key_id, data)
            if made.checked():
                return issued

    @redis_errors
    async def authenticate(self, key: str) -> KeyRecord:
        """The record of a key that works. Raises Unauthenticated, the same for an unknown, a wrong and an ended one."""
        form = _FORM.fullmatch(key)
        record = await self._find(form[1]) if form else None
        genuine = hmac.compare_digest(record.digest if record else _NOBODY, _digest(key))
        if record is None or not genuine or record.state(self._now_ms()) != "active":
            raise Unauthenticated(
                "this API key is not valid; make one with `sparke keys create --tenant NAME`"
            )
        await self._note_use(record.key_id)
        return record

    @redis_errors
    async def any_keys(self) -> bool:
        """True once a key was made, even if all are revoked: revoking the last one does not open the service.

        Nor does deleting the last tenant.
        """
        return bool(await self._redis.hlen(_KEYS) or await self._redis.exists(_WERE_KEYS))

    @redis_errors
    async def get(self, key_id: str) -> UsedKey:
        """What is kept of a key. Raises NotFound."""
        record = await self._find(key_id)
        if record is None:
            raise _no_such(key_id)
        used_at_ms: Any = await self._redis.hget(_USES, key_id)
        return UsedKey(record, None if used_at_ms is None else int(used_at_ms))

    async def list_keys(self, tenant_id: TenantId | None = None) -> list[KeyRecord]:
        """The keys of a tenant, or all, oldest first. Cost: all keys are read, 500 at a time."""
        return [used.record for used in await self.list_used(tenant_id)]

    @redis_errors
    async def list_used(self, tenant_id: TenantId | None = None) -> list[UsedKey]:
        """The same with their last uses."""
        chosen = {
            record.key_id: record
            async for record in self._all_records()
            if tenant_id in (None, record.tenant_id)
        }
        ordered = sorted(chosen.values(), key=lambda record: (record.created_at_ms, record.key_id))
        ids = [record.key_id for record in ordered]
        uses: Any = await self._redis.hmget(_USES, ids) if ids else []
        return [
            UsedKey(record, None if used is None else int(used))
            for record, used in zip(ordered, uses, strict=True)
        ]

    @redis_errors
    async def revoke(self, key_id: str) -> KeyRecord:
        """Ends a key; a second time changes nothing. What is kept of it then. Raises NotFound."""
        while True:
            data: Any = await self._redis.hget(_KEYS, key_id)
            if data is None:
                raise _no_such(key_id)
            record = _decode(key_id, data)
            if record.revoked_at_ms is None:
                record = replace(record, revoked_at_ms=self._now_ms())
            written = await self._replicas.run(self._swap, [_KEYS], [key_id, data, _RECORD.dump_json(record)])
            if written.checked():
                return record

    @redis_errors
    async def rotate(
        self, key_id: str, *, grace_s: int = DEFAULT_GRACE_S, life_s: int | None = None
    ) -> IssuedKey:
        """A new key of the same tenant, name and scopes; the old one ends after a grace time, if not before.

        The new one lives for `life_s`; None: as long as the old one was to live from its making. Raises NotFound, and
        KeyEnded where the old one does not work any more or has a successor already. Never two successors of one key.
        """
        if not 0 <= grace_s <= MAX_GRACE_S:
            raise InvalidValue(f"a grace time is 0 to {MAX_GRACE_S} s, got {grace_s}", param="grace_s")
        while True:
            data: Any = await self._redis.hget(_KEYS, key_id)
            if data is None:
                raise _no_such(key_id)
            old, now_ms = _decode(key_id, data), self._now_ms()
            if old.state(now_ms) != "active" or old.successor_id is not None:
                raise KeyEnded(_why_not(old, now_ms))
            issued = self._make(old.tenant_id, KeyWish(old.name, old.scopes, life_s or _life_s(old)))
            new = issued.record
            end_ms = min(now_ms + 1000 * grace_s, old.expires_at_ms or 2**53)
            ending = replace(old, expires_at_ms=end_ms, successor_id=new.key_id)
            written: list[Any] = [_RECORD.dump_json(ending), new.key_id, _RECORD.dump_json(new)]
            rotated = await self._replicas.run(self._rotate, [_KEYS], [key_id, data, *written])
            if rotated.checked() == b"done":
                return issued

    @redis_errors
    async def remove_all(self, tenant_id: TenantId) -> int:
        """Ends all keys of a tenant at once, and forgets them. How many there were."""
        ids = [record.key_id async for record in self._all_records() if record.tenant_id == tenant_id]
        if not ids:
            return 0
        await self._redis.set(_WERE_KEYS, 1)
        num_removed = int((await self._replicas.command("HDEL", _KEYS, *ids)).checked())
        await self._redis.hdel(_USES, *ids)
        for key_id in ids:
            self._noted_at_ms.pop(key_id, None)
        return num_removed

    @redis_errors
    async def list_tenants(self) -> set[TenantId]:
        """All tenants that have a key, of those from before tenants were listed too."""
        return {record.tenant_id async for record in self._all_records()}

    def _make(self, tenant_id: TenantId, wish: KeyWish) -> IssuedKey:
        key_id, now_ms = secrets.token_hex(4), self._now_ms()
        key = f"{KEY_PREFIX}{key_id}-{secrets.token_urlsafe(32)}"
        record = KeyRecord(
            key_id,
            tenant_id,
            _digest(key),
            now_ms,
            name=wish.name,
            scopes=wish.scopes,
            expires_at_ms=None if wish.life_s is None else now_ms + 1000 * wish.life_s,
        )
        return IssuedKey(key, record)

    async def _note_use(self, key_id: str) -> None:
        """Writes down that a key is used, unless this process did so within the hour."""
        now_ms = self._now_ms()
        if now_ms - self._noted_at_ms.get(key_id, -_NOTED_AGAIN_MS) >= _NOTED_AGAIN_MS:
            await self._redis.hset(_USES, key_id, str(now_ms))
            self._noted_at_ms[key_id] = now_ms

    async def _all_records(self) -> AsyncIterator[KeyRecord]:
        """Every key; those that are made or removed meanwhile may be missed.

        One whose record cannot be read is left out and logged: it must not hide the others.
        """
        cursor: Any = 0
        page: Any
        while True:
            cursor, page = await self._redis.hscan(_KEYS, cursor, count=_PAGE_KEYS)
            for key_id, data in page.items():
                try:
                    yield _decode(key_id.decode(), data)
                except CorruptRecord as error:
                    _log.error("api_key_left_out", reason=error.message)
            if cursor == 0:
                return

    async def _find(self, key_id: str) -> KeyRecord | None:
        data: Any = await self._redis.hget(_KEYS, key_id)
        return None if data is None else _decode(key_id, data)

    def _now_ms(self) -> int:
        return int(self._clock_s() * 1000)


def claimed_key_id(key: str | None) -> str | None:
    """Which key somebody says that this is; None where it has not the form of one. Nothing is known of it."""
    form = None if key is None else _FORM.fullmatch(key)
    return form[1] if form else None


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _decode(key_id: str, data: bytes) -> KeyRecord:
    try:
        return _RECORD.validate_json(data)
    except ValidationError as error:
        raise CorruptRecord(f"API key {key_id}: its record does not fit the schema") from error


def _life_s(record: KeyRecord) -> int | None:
    if record.expires_at_ms is None:
        return None
    return max(1, (record.expires_at_ms - record.created_at_ms) // 1000)


def _why_not(record: KeyRecord, now_ms: int) -> str:
    if record.state(now_ms) != "active":
        return f"key {record.key_id} is {record.state(now_ms)}: make a new one"
    return f"key {record.key_id} was rotated before: its successor is {record.successor_id}"


def _no_such(key_id: str) -> NotFound:
    return NotFound(f"there is no API key with the id {key_id[:80]!r}; `sparke keys list` shows them")
