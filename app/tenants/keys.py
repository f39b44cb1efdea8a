"""API keys: one is shown once, when it is made; only its digest is kept."""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError
from redis.asyncio import Redis

from app.domain.ids import TenantId
from app.errors import CorruptRecord, NotFound, Unauthenticated
from app.redis.errors import redis_errors
from app.redis.replicas import Replicas

_FORM = re.compile(r"sk-sparke-([0-9a-f]{8})-([A-Za-z0-9_-]{43})")
_KEYS = "sparke:api-keys"  # hash of key id → JSON; lives for ever
_NOBODY = hashlib.sha256(b"no such key").hexdigest()


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is kept of an API key: the SHA-256 of the whole key in hex, never the key. Times are Unix milliseconds."""

    key_id: str
    tenant_id: TenantId
    digest: str
    created_at_ms: int
    revoked_at_ms: int | None = None


_RECORD = TypeAdapter(KeyRecord)


class KeyStore:
    """API keys of all tenants. The secret has 256 random bits, so a plain digest cannot be searched.

    All methods raise StoreUnavailable where Redis does not answer. New keys and revocations wait for replicas where those
    are asked for: NotReplicated, and they may yet stand.
    """

    def __init__(
        self, redis: Redis, *, clock_s: Callable[[], float] = time.time, replicas: Replicas | None = None
    ) -> None:
        self._redis = redis
        self._replicas = replicas or Replicas(redis)
        self._clock_s = clock_s

    @redis_errors
    async def create(self, tenant_id: TenantId) -> str:
        """A new key of the tenant. It cannot be shown again."""
        while True:
            key_id = secrets.token_hex(4)
            key = f"sk-sparke-{key_id}-{secrets.token_urlsafe(32)}"
            record = KeyRecord(key_id, tenant_id, _digest(key), int(self._clock_s() * 1000))
            made = await self._replicas.command("HSETNX", _KEYS, key_id, _RECORD.dump_json(record))
            if made.checked():
                return key

    @redis_errors
    async def authenticate(self, key: str) -> TenantId:
        """The tenant of a key. Raises Unauthenticated, the same for an unknown, a wrong and a revoked one."""
        form = _FORM.fullmatch(key)
        record = await self._find(form[1]) if form else None
        genuine = hmac.compare_digest(record.digest if record else _NOBODY, _digest(key))
        if record is None or not genuine or record.revoked_at_ms is not None:
            raise Unauthenticated(
                "this API key is not valid; make one with `sparke keys create --tenant NAME`"
            )
        return record.tenant_id

    @redis_errors
    async def any_keys(self) -> bool:
        """True once a key was made, even if all are revoked: revoking the last one does not open the service."""
        return bool(await self._redis.hlen(_KEYS))

    @redis_errors
    async def list_keys(self, tenant_id: TenantId | None = None) -> list[KeyRecord]:
        """The keys of a tenant, or all, oldest first."""
        found: Any = await self._redis.hgetall(_KEYS)
        records = [_decode(key_id.decode(), data) for key_id, data in found.items()]
        chosen = [record for record in records if tenant_id in (None, record.tenant_id)]
        return sorted(chosen, key=lambda record: (record.created_at_ms, record.key_id))

    @redis_errors
    async def revoke(self, key_id: str) -> None:
        """Ends a key; a second time changes nothing. Raises NotFound."""
        record = await self._find(key_id)
        if record is None:
            raise NotFound(f"there is no API key with the id {key_id!r}; `sparke keys list` shows them")
        if record.revoked_at_ms is None:
            record = replace(record, revoked_at_ms=int(self._clock_s() * 1000))
        written = await self._replicas.command("HSET", _KEYS, key_id, _RECORD.dump_json(record))
        written.checked()

    async def _find(self, key_id: str) -> KeyRecord | None:
        data: Any = await self._redis.hget(_KEYS, key_id)
        return None if data is None else _decode(key_id, data)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _decode(key_id: str, data: bytes) -> KeyRecord:
    try:
        return _RECORD.validate_json(data)
    except ValidationError as error:
        raise CorruptRecord(f"API key {key_id}: its record does not fit the schema") from error
