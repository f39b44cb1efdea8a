"""Redis over TLS, and as a user with few rights: what works, and what is refused in words."""

import asyncio
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
import trustme
from patience import PATIENCE_S

from app.errors import ConfigurationError, StoreUnavailable
from app.redis.connection import check_server, connect

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]
WATCH = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "e2e" / "redis_watch.py")))


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A server behind TLS, once for everybody and once for who has a certificate; the files of a client."""
    folder = tmp_path_factory.mktemp("tls")
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    other.cert_pem.write_to_path(folder / "other.pem")
    mine = authority.issue_cert("client.internal")
    mine.private_key_pem.write_to_path(folder / "mine.key")
    mine.cert_chain_pems[0].write_to_path(folder / "mine.pem")
    with (
        WATCH.running_server(folder) as port,
        WATCH.tls_before(port, authority) as tls_port,
        WATCH.tls_before(port, authority, asks_client=True) as strict_port,
        redis.Redis(port=port, password=WATCH.ADMIN) as admin,
    ):
        admin.execute_command("ACL SETUSER", "poor", "on", ">pass", "~*", "+ping", "+auth")
        yield SimpleNamespace(folder=folder, port=port, tls_port=tls_port, strict_port=strict_port)


async def _check(url):
    client = connect(url, timeout_s=PATIENCE_S)
    try:
        return await check_server(client)
    finally:
        await client.aclose()


def _url(there, port, members="ssl_ca_certs=CA", host="localhost", user=f":{WATCH.ADMIN}"):
    members = members.replace("CA", str(there.folder / "ca.pem")).replace("FOLDER", str(there.folder))
    return f"rediss://{user}@{host}:{port}/0?{members}"


async def test_a_server_of_a_ca_that_is_named_is_trusted(there):
    """By its certificate and its name; who has to show one shows it."""
    assert await _check(_url(there, there.tls_port))
    unnamed = "ssl_ca_certs=CA&ssl_check_hostname=false"
    assert await _check(_url(there, there.tls_port, unnamed, host="127.0.0.1"))
    mine = "ssl_ca_certs=CA&ssl_certfile=FOLDER/mine.pem&ssl_keyfile=FOLDER/mine.key"
    assert await _check(_url(there, there.strict_port, mine))


@pytest.mark.parametrize(
    ("members", "host", "message"),
    [
        ("ssl_ca_certs=FOLDER/other.pem", "localhost", "not to be trusted.*name the CA"),
        ("", "localhost", "not to be trusted"),
        ("ssl_ca_certs=CA", "127.0.0.1", "not to be trusted.*127.0.0.1"),
    ],
)
async def test_another_server_is_refused(there, members, host, message):
    """Of another CA, of one that nobody knows, under another name: the process is told why, and does not start."""
    with pytest.raises(ConfigurationError, match=message):
        await _check(_url(there, there.tls_port, members, host))


async def test_who_must_show_a_certificate_and_has_none_gets_no_answer(there):
    """With TLS 1.3 the server hangs up after it was greeted, which may be anything: the service waits for it."""
    with pytest.raises(StoreUnavailable):
        await _check(_url(there, there.strict_port))


async def test_a_port_without_tls_is_told(there):
    """What answers, and not in TLS, will not do so by waiting."""

    async def answer(_reader, writer):
        writer.write(b"-ERR what is this?\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        with pytest.raises(ConfigurationError, match="TLS with Redis fails"):
            await _check(_url(there, port))
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("user", "message"), [(":wrong", "refuses the user or password"), ("poor:pass", "may not do what")]
)
async def test_a_wrong_password_and_missing_rights_are_told(there, user, message):
    """Neither passes by waiting."""
    with pytest.raises(ConfigurationError, match=message):
        await _check(_url(there, there.tls_port, user=user))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("rediss://h/0?ssl_cert_reqs=none", "lets anybody"),
        ("rediss://h/0?ssl_cert_reqs=optional", "lets anybody"),
        ("rediss://h/0?ssl_cert_reqs=none&ssl_cert_reqs=required", "lets anybody"),
        ("rediss://h/0?ssl_ca_certs=/nowhere.pem", "there is no file"),
        ("redis://h/0?ssl_ca_certs=/nowhere.pem", "begin it with rediss://"),
        ("rediss://h/0?ssl_ca_certs=", "there is no file"),
    ],
)
async def test_a_url_that_would_not_protect_is_refused(url, message):
    """Before anything is sent."""
    with pytest.raises(ConfigurationError, match=message):
        connect(url)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://h:6379/0?foo=bar", "foo"),
        ("redis://h:6379/0?foo=", "foo"),
        ("unix:///run/redis.sock?dd=1", "dd"),
        ("rediss://h/0?ssl_ca_cert=/ca.pem", "ssl_ca_cert"),
        ("redis://h/0?socket_timeout=1", "socket_timeout"),
        ("redis://h/0?sentinel_password=x", "sentinel_password"),
        ("redis+sentinel://one/mine?sentinel_user=x", "sentinel_user"),
    ],
)
async def test_a_member_that_is_not_known_is_named(url, name):
    """With those that are, before a connection is made of it: redis-py raised TypeError then."""
    with pytest.raises(ConfigurationError, match=f"no member '{name}'; known are db, ssl_ca_certs,"):
        connect(url)


async def test_the_end_of_a_password_is_not_shown():
    """What follows a question mark that should have been `%3F`."""
    with pytest.raises(ConfigurationError, match="no such member as after its `\\?`") as refused:
        connect("redis://:pass?w0rd-@h:6379/0")
    assert "w0rd" not in refused.value.message


def test_the_members_that_are_known_are_those_that_are_documented():
    """A row of docs/redis-security.md or docs/sentinel.md for each; `ssl_cert_reqs` is known to be refused."""
    pages = [
        (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("redis-security.md", "sentinel.md")
    ]
    rows = re.findall(r"^\| (`(?:db|ssl_|sentinel_)[^|]*)\|", "\n".join(pages), re.MULTILINE)
    with pytest.raises(ConfigurationError, match=r"known are (.*); see") as refused:
        connect("redis+sentinel://one/mine?foo=bar")
    known = re.search(r"known are (.*); see", refused.value.message)[1].split(", ")
    assert {*re.findall(r"`(\w+)", " ".join(rows)), "ssl_cert_reqs"} == set(known)
