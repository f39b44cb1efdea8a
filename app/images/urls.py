"""Signed, expiring image URLs: whoever holds one sees one image of one tenant until it expires."""

import base64
import hashlib
import hmac
import secrets
from typing import Any

from redis.asyncio import Redis

from app.domain.ids import ImageId, TenantId
from app.errors import ConfigurationError, Unauthenticated
from app.redis.errors import redis_errors

MIN_KEY_BYTES = 32


class UrlSigner:
    """Signs (tenant, image, expiry) with HMAC-SHA256. The members of the signed text cannot contain its separator."""

    def __init__(self, key: bytes) -> None:
        if len(key) < MIN_KEY_BYTES:
            raise ConfigurationError(
                f"the URL signing key needs {MIN_KEY_BYTES} bytes or more, got {len(key)}"
            )
        self._key = key

    def sign(self, tenant_id: TenantId, image_id: ImageId, expires_at_s: int) -> str:
        """The signature, 43 characters of base64url. `expires_at_s` is Unix time in seconds."""
        text = f"sparke-image-url-v1\n{tenant_id}\n{image_id}\n{expires_at_s}".encode()
        digest = hmac.digest(self._key, text, hashlib.sha256)
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")

    def verify(
        self, tenant_id: TenantId, image_id: ImageId, expires_at_s: int, *, signature: str, now_s: float
    ) -> None:
        """Raises Unauthenticated unless the signature is ours and `now_s` is before the expiry. Constant time."""
        expected = self.sign(tenant_id, image_id, expires_at_s)
        genuine = hmac.compare_digest(expected.encode(), signature.encode("utf-8", "surrogatepass"))
        if not genuine or now_s >= expires_at_s:
            raise Unauthenticated("this image URL is wrong or has expired; ask for the image again")


class SigningKeyStore:
    """The signing key that all replicas share where the settings give none."""

    KEY = "sparke:url-signing-key"

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    @redis_errors
    async def get_or_create(self) -> bytes:
        """The key, made by whoever asks first. Raises StoreUnavailable."""
        await self._redis.set(self.KEY, secrets.token_bytes(MIN_KEY_BYTES), nx=True)
        key: Any = await self._redis.get(self.KEY)
        return bytes(key)
