"""Who may ask for what."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx
import openai
import pytest
from patience import PATIENCE_S

from app.domain.ids import TenantId
from app.errors import ConfigurationError
from app.http.guard.auth import is_loopback
from app.http.process.main import refuse_to_be_open
from app.http.process.wiring import open_deps
from app.redis.connection import connect
from app.settings import Settings
from app.tenants.keys import KeyStore

T = TypeVar("T")
ServeApi = Callable[[Settings], str]


def _with_keys(settings: Settings, use: Callable[[KeyStore], Awaitable[T]]) -> T:
    async def run() -> T:
        redis = connect(settings.redis_url or "")
        try:
            return await use(KeyStore(redis))
        finally:
            await redis.aclose()

    return asyncio.run(run())


@pytest.fixture
def other_database(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """The same Redis, but a database without keys that no other test uses."""
    number = {
        "test_keys_are_required_as_soon_as_there_is_one": 1,
        "test_no_open_server_off_loopback": 2,
        "test_a_server_off_loopback_is_never_open": 4,
    }
    database = number.get(request.node.name, 3)
    return settings.model_copy(update={"redis_url": f"{settings.redis_url}?db={database}"})


def _get(url: str, key: str | None = None, **headers: str) -> httpx.Response:
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    return httpx.get(f"{url}/v1/models", headers=headers, timeout=PATIENCE_S)


def test_keys_are_required_as_soon_as_there_is_one(serve_api: ServeApi, other_database: Settings):
    """Without keys anybody on this machine; from the first key on only who has one; for ever after."""
    url = serve_api(other_database)
    assert _get(url).status_code == 200
    assert _get(url, "anything").status_code == 200
    key = _with_keys(other_database, lambda keys: keys.create(TenantId("acme")))
    for wrong in (None, "anything", key[:-1], key + "x", "sk-sparke-00000000-" + "x" * 43):
        answer = _get(url, wrong)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), wrong
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert _get(url, key).status_code == 200
    assert httpx.get(f"{url}/livez", timeout=PATIENCE_S).status_code == 200
    _with_keys(other_database, lambda keys: keys.revoke(key.split("-")[2]))
    assert _get(url, key).status_code == 401
    assert _get(url).status_code == 401


def test_a_key_of_ours_is_never_ignored(api_url: str):
    """Where there are no keys, a key that looks like one is refused, so that nobody takes `default` for his tenant."""
    assert _get(api_url, "sk-sparke-00000000-" + "x" * 43).status_code == 401


def test_the_official_client_raises_its_error_for_a_wrong_key(serve_api: ServeApi, other_database: Settings):
    """On a server with keys: AuthenticationError with status, message and code, for images and for models."""
    key = _with_keys(other_database, lambda keys: keys.create(TenantId("acme")))
    url = serve_api(other_database)
    with openai.OpenAI(base_url=f"{url}/v1", api_key=f"{key[:-1]}!", max_retries=0) as client:
        for ask in (lambda: client.images.generate(prompt="a star"), client.models.list):
            with pytest.raises(openai.AuthenticationError) as caught:
                ask()
            assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
            assert "API key" in caught.value.message
            assert key[:-1] not in caught.value.message
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key) as client:
        assert client.models.list().data


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "10.0.0.1",
        "evil_.example",
        "a:b:c",  # from here on what the framework takes for no name, and so for the server's own address
        "[",
        "evil@localhost",
        "localhost/x",
        "localhost:x",
    ],
)
def test_an_open_server_answers_to_its_own_names_only(api_url: str, host: str):
    """A web page that points its own name at 127.0.0.1 gets nothing."""
    answer = _get(api_url, host=host)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1.evil.example"},
        {"origin": "http://["},
        {"origin": "file://localhost"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_a_page_from_elsewhere_cannot_send_its_visitors_browser(api_url: str, headers: dict[str, str]):
    """Without keys there is nothing that a page would have to know; forms and files need no leave of the browser."""
    answer = httpx.post(
        f"{api_url}/v1/files", files={"file": ("a", b"{}")}, headers=headers, timeout=PATIENCE_S
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert (
        _get(api_url, origin="http://localhost:8000", **{"sec-fetch-site": "same-origin"}).status_code == 200
    )


def test_a_server_off_loopback_is_never_open(serve_api: ServeApi, other_database: Settings):
    """However it came to run without keys, on another address it answers nobody, also not on this machine."""
    url = serve_api(other_database.model_copy(update={"host": "0.0.0.0"}))  # noqa: S104
    assert _get(url).status_code == 401
    assert httpx.get(f"{url}/livez", timeout=PATIENCE_S).status_code == 200


def test_the_key_is_checked_before_the_body(serve_api: ServeApi, other_database: Settings):
    """Who has no key learns nothing about bodies, and none is read."""
    _with_keys(other_database, lambda keys: keys.create(TenantId("acme")))
    url = serve_api(other_database)
    for content in (b"{", b'{"prompt": ""}', b" " * 5_000_000):
        answer = httpx.post(
            f"{url}/v1/images/generations",
            content=content,
            headers={"content-type": "application/json"},
            timeout=PATIENCE_S,
        )
        assert answer.status_code == 401


def test_no_open_server_off_loopback(other_database: Settings):
    """Without keys the server does not start elsewhere, and says what to do; with one it does."""

    async def start() -> None:
        elsewhere = other_database.model_copy(update={"host": "0.0.0.0"})  # noqa: S104
        async with open_deps(elsewhere, other_database.redis_url or "") as deps:
            await refuse_to_be_open(deps)

    with pytest.raises(ConfigurationError, match="sparke keys create"):
        asyncio.run(start())
    _with_keys(other_database, lambda keys: keys.create(TenantId("acme")))
    asyncio.run(start())


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("", False),
        ("localhost.evil.example", False),
        ("192.168.0.1", False),
    ],
)
def test_loopback(host: str, expected: bool):  # noqa: FBT001
    """Only names and addresses that never leave the machine."""
    assert is_loopback(host) is expected
