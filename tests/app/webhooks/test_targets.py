"""Where webhooks may go: nowhere private, in whatever disguise, and to no other address than the one that was checked."""

import asyncio
import ipaddress
import ssl
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.ids import TenantId
from app.domain.webhook import WebhookEvent
from app.errors import InvalidValue
from app.webhooks.outbox import Delivery
from app.webhooks.sender import HttpSender, Outcome
from app.webhooks.targets import Targets, is_public

pytestmark = pytest.mark.anyio

PRIVATE = (
    *("127.0.0.1", "127.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    "0.0.0.0",  # noqa: S104 - to be refused
    *("169.254.169.254", "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::127.0.0.1", "fe80::1"),
    *("fe80::1%lo", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1"),
    *("2002:7f00:1::", "2002:a00:1::1", "2001::1", "2001:db8::1", "100::1", "not an address", ""),
)
PUBLIC = ("8.8.8.8", "1.1.1.1", "::ffff:8.8.8.8", "2606:4700::1111", "2002:808:808::1")
IN_DISGUISE = (
    *("2130706433", "0x7f000001", "0x7f.1", "127.1", "0177.0.0.1", "0", "127.0.0.1.", "localhost"),
    *("[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:169.254.169.254]"),
    *("169.254.169.254", "2852039166", "LOCALHOST", "①②⑦.⓪.⓪.①", "127。0。0。1"),
)


class Names:
    """A resolver whose answers are told, one after the other."""

    def __init__(self, *answers: list[str]):
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def resolve(self, host, port):
        """The next answer; the last one again and again."""
        self.asked.append((host, port))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address):
    """Loopback, private, link-local, shared, reserved, multicast, documentation, and IPv4 within IPv6."""
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address):
    """What can be reached by everybody."""
    assert is_public(address)


@given(st.ip_addresses(v=4), st.sampled_from(["{}", "::ffff:{}"]))
def test_no_form_of_an_ipv4_address_is_more_public_than_itself(address, form):
    """Plain, mapped, or within 6to4: the same answer, and never public where Python's table says private."""
    assert is_public(form.format(address)) == is_public(str(address))
    within = ipaddress.IPv6Address((0x2002 << 112) | (int(address) << 80) | 1)
    assert is_public(str(within)) == is_public(str(address))
    assert not (is_public(str(address)) and (address.is_private or address.is_multicast))


@given(st.ip_addresses(v=6))
def test_ipv6_outside_global_unicast_is_private(address):
    """Whatever it translates to elsewhere."""
    if address not in ipaddress.ip_network("2000::/3") and address.ipv4_mapped is None:
        assert not is_public(str(address))


@pytest.mark.parametrize("host", IN_DISGUISE)
async def test_this_machine_in_disguise_is_refused(resolver, host):
    """Decimal, octal, hexadecimal, shortened, full-width, by name: what the system would connect to is looked at."""
    targets = Targets(resolver, allow_private=False)
    with pytest.raises(InvalidValue):
        await targets.check(f"https://{host}/hook")


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.org/", "ftp://example.org/", "file:///etc/passwd", "//example.org/", "example.org"),
        *(
            "https://",
            "https:///path",
            "https://u:p@example.org/",
            "https://u@example.org",
            "https://[::1/",
            "",
        ),
        *(
            "https://example.org:99999/",
            "https://example.org:0/",
            "https://exa mple.org/",
            "https://a\r\nb/",
            "gopher://8.8.8.8/",
        ),
        "https://example.org/" + "x" * 2048,
    ],
)
async def test_urls_that_are_refused(url):
    """Other schemes, credentials, no host, what is no URL, and what is too long."""
    with pytest.raises(InvalidValue) as refused:
        await Targets(Names(["8.8.8.8"]), allow_private=False).check(url)
    assert refused.value.param == "url"


async def test_a_good_url_is_kept():
    """Also one with a port, a path and a query; plain http needs the operator's word."""
    names = Names(["8.8.8.8", "2606:4700::1111"])
    url = "https://example.org:8443/hook?a=b"
    assert await Targets(names, allow_private=False).check(url) == url
    assert names.asked == [("example.org", 8443)]
    assert await Targets(Names(["10.0.0.1"]), allow_private=True).check("http://inside/") == "http://inside/"


async def test_one_private_address_among_public_ones_is_too_much():
    """Which one would be connected to is nobody's choice."""
    with pytest.raises(InvalidValue, match="not public"):
        await Targets(Names(["8.8.8.8", "10.0.0.1"]), allow_private=False).check("https://example.org/")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".example", "xn--.example"])
async def test_a_name_without_an_address(resolver, host):
    """It cannot become a webhook."""
    with pytest.raises(InvalidValue):
        await Targets(resolver, allow_private=False).check(f"https://{host}/")


async def _delivery(office, url):
    webhook = await office.store().create(TenantId("acme"), url)
    event = WebhookEvent("job.succeeded", "job_1", office.clock_ms(), {})
    return Delivery(webhook, "1-0", event, 0)


async def test_a_name_that_leads_elsewhere_by_then_is_refused(office, make_receiver):
    """It was public when the webhook was made: it is looked at again before each attempt, and nothing is sent."""
    receiver = await make_receiver()
    names = Names(["8.8.8.8"], ["127.0.0.1"])
    targets = Targets(names, allow_private=False)
    url = await targets.check(receiver.url.replace("http://127.0.0.1", "https://example.org"))
    attempt = await HttpSender(targets).send(await _delivery(office, url), now_ms=office.clock_ms())
    assert attempt.outcome is Outcome.REFUSED
    assert receiver.messages == []


async def test_the_name_is_asked_once_for_each_attempt(office, make_receiver):
    """The connection goes to the address that was looked at; an answer that changes in between is never asked for."""
    receiver = await make_receiver()
    names = Names(["127.0.0.1"], ["203.0.113.1"])
    port = receiver.url.rpartition(":")[2]
    delivery = await _delivery(office, f"http://hooks.example:{port}/in")
    sender = HttpSender(Targets(names, allow_private=True))
    assert (await sender.send(delivery, now_ms=office.clock_ms())).outcome is Outcome.DELIVERED
    assert names.asked == [("hooks.example", int(port))]
    [message] = receiver.messages
    assert (message.path, message.headers["host"]) == ("/in", f"hooks.example:{port}")


async def test_the_next_address_is_tried_where_one_is_dead(office, make_receiver):
    """As browsers do."""
    receiver = await make_receiver()
    port = receiver.url.rpartition(":")[2]
    sender = HttpSender(Targets(Names(["127.0.0.9", "127.0.0.1"]), allow_private=True))
    delivery = await _delivery(office, f"http://hooks.example:{port}/in")
    assert (await sender.send(delivery, now_ms=office.clock_ms())).outcome is Outcome.DELIVERED


async def test_tls_asks_for_the_name_of_the_url(office, tmp_path):
    """The certificate is held against the URL's host, though the connection is to an address; a wrong one is no answer."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key)]
    command += ["-out", str(certificate), "-subj", "/CN=hooks.example"]
    command += ["-addext", "subjectAltName=DNS:hooks.example"]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    asked = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.sni_callback = lambda _socket, name, _context: asked.append(name)

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    trusting = ssl.create_default_context(cafile=str(Path(certificate)))
    sender = HttpSender(Targets(Names(["127.0.0.1"]), allow_private=True), tls=trusting)
    outcomes = [
        (
            await sender.send(await _delivery(office, f"https://{host}:{port}/"), now_ms=office.clock_ms())
        ).outcome
        for host in ("hooks.example", "other.example")
    ]
    stranger = HttpSender(Targets(Names(["127.0.0.1"]), allow_private=True))
    delivery = await _delivery(office, f"https://hooks.example:{port}/")
    outcomes.append((await stranger.send(delivery, now_ms=office.clock_ms())).outcome)
    server.close()
    assert outcomes == [Outcome.DELIVERED, Outcome.UNREACHABLE, Outcome.UNREACHABLE]
    assert asked == ["hooks.example", "other.example", "hooks.example"]
