"""What a Redis URL says of TLS, looked at before anything is sent, and errors of TLS and of access in words."""

import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import structlog
from redis import exceptions

from app.errors import ConfigurationError
from app.redis.sentinel_url import is_sentinel_url, plain_url
from app.redis.sentinels import SentinelsRefuse

SEE = "see docs/redis-security.md"
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_MEMBERS = ("db", *_FILES, "ssl_cert_reqs", "ssl_check_hostname")
_SENTINEL_MEMBERS = ("sentinel_username", "sentinel_password")
_log = structlog.get_logger(__name__)


def check_transport(url: str) -> None:
    """Raises ConfigurationError for a URL with an unknown member, whose files are not there, or that asks for TLS with anybody.

    A certificate is always checked. Its name is too, unless the URL says `ssl_check_hostname=false`, which is logged: behind
    a tunnel the name may be another one.
    """
    known = _MEMBERS + _SENTINEL_MEMBERS if is_sentinel_url(url) else _MEMBERS
    url = plain_url(url)
    given = parse_qs(urlsplit(url).query, keep_blank_values=True)
    members = {name: values[0] for name, values in given.items()}
    unknown = sorted(members.keys() - set(known))
    if unknown:
        # what is no name may be the end of a password that has a `?`
        named = (
            f"no member {unknown[0]!r}" if unknown[0].isidentifier() else "no such member as after its `?`"
        )
        raise ConfigurationError(f"SPARKE_REDIS_URL: there is {named}; known are {', '.join(known)}; {SEE}")
    if not url.startswith("rediss://"):
        wrong = sorted(name for name in members if name.startswith("ssl_"))
        if wrong:
            raise ConfigurationError(
                f"SPARKE_REDIS_URL: {wrong[0]} is for TLS, and this URL is without: begin it with rediss://"
            )
        return
    if members.get("ssl_cert_reqs", "required") != "required":
        raise ConfigurationError(
            "SPARKE_REDIS_URL: ssl_cert_reqs lets anybody between here and Redis read and change everything; name the CA of"
            f" its certificate with ssl_ca_certs instead; {SEE}"
        )
    for name in _FILES:
        if name in members and not Path(members[name]).is_file():
            raise ConfigurationError(f"SPARKE_REDIS_URL: {name}: there is no file {members[name]!r}")
    if members.get("ssl_check_hostname", "true").lower() in ("false", "0", "no", "off", "f", "n"):
        _log.warning("redis_name_unchecked", reason="ssl_check_hostname=false in the URL")


def explain_refusal(error: Exception) -> ConfigurationError | None:
    """What a server's refusal means for the settings, or None where it may pass."""
    for found in _within(error):
        meant = _explain(found)
        if meant is not None:
            return meant
    return None


def _within(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it came of: redis-py wraps what a server refuses while it connects."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _explain(found: BaseException) -> ConfigurationError | None:
    if isinstance(found, SentinelsRefuse):
        return ConfigurationError(f"{found}; {SEE}")
    if isinstance(found, exceptions.AuthenticationError):
        return ConfigurationError(f"Redis refuses the user or password of SPARKE_REDIS_URL: {found}; {SEE}")
    if isinstance(found, exceptions.NoPermissionError):
        return ConfigurationError(
            f"the user of SPARKE_REDIS_URL may not do what the service does: {found}; {SEE}"
        )
    if isinstance(found, ssl.SSLCertVerificationError):
        return ConfigurationError(
            f"the certificate of Redis is not to be trusted: {found.verify_message or found}; name the CA that signed it"
            f" with ssl_ca_certs in SPARKE_REDIS_URL, and Redis as it is named there; {SEE}"
        )
    if isinstance(found, ssl.SSLError):
        return ConfigurationError(
            f"TLS with Redis fails: {found.reason or found}; is that a port with TLS, and does it ask for a certificate of"
            f" ours (ssl_certfile, ssl_keyfile)? {SEE}"
        )
    return None
