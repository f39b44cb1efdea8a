"""A query has members that its route knows, each of them once, or the request is refused before anything is done."""

from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
from openai.types import BatchListParams, FileListParams
from patience import PATIENCE_S

from app.domain.scope import Scope
from app.http.guard.scopes import NEEDED
from app.settings import Settings

ServeApi = Callable[[Settings], str]
UNREAD = "tsylf"  # near to nothing


@pytest.fixture
def mine(
    serve_api: ServeApi, own_database: Settings, issue_key: Callable[..., str]
) -> Iterator[httpx.Client]:
    """A client with every scope, of an API with a database of its own."""
    url = serve_api(own_database.model_copy(update={"webhooks_allow_private": True}))
    key = issue_key(own_database.redis_url, "acme", *Scope)
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S) as client:
        yield client


def _refusal(answer: httpx.Response) -> tuple[int, str, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"], error["message"]


def test_every_operation_with_a_key_refuses_what_it_does_not_know(mine: httpx.Client):
    """In the one form, under the code that members of bodies have, before a body is read or anything is looked up."""
    for (method, path), scope in NEEDED.items():
        if scope is not None:
            answer = mine.request(method, path.replace("{", "").replace("}", ""), params={UNREAD: "1"})
            assert _refusal(answer)[:3] == (400, "unknown_parameter", UNREAD), (method, path)
            assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("method", "path", "name", "meant"),
    [
        ("POST", "/v1/webhooks/x/rotate", "grace", "did you mean 'grace_s'?"),
        ("GET", "/v1/jobs", "state", "did you mean 'status'?"),
        ("DELETE", "/v1/memories/toy.default", "wait", "did you mean 'wait_s'?"),
        ("POST", "/v1/memories/import", "nmae", "did you mean 'name'?"),
        ("GET", "/v1/jobs", "before", "known here: after, limit, status, model"),
        ("GET", "/v1/models", "limit", "known here: none"),
        ("GET", "/v1/files", "Limit", "did you mean 'limit'?"),
    ],
)
def test_what_was_meant_is_said(http: httpx.Client, method: str, path: str, name: str, meant: str):
    """The nearest name where one is near, else all of them."""
    told = _refusal(http.request(method, path, params={name: "0"}))
    assert told == (400, "unknown_parameter", name, f"{name}: unknown member of the query; {meant}")


def test_a_slip_does_nothing(mine: httpx.Client):
    """A secret stays, a memory is not deleted, and the audit log says that it was refused."""
    made = mine.post("/v1/webhooks", json={"url": "http://127.0.0.1:9/"}).json()
    mine.post("/v1/memories", json={"name": "kept", "model": "toy"}).raise_for_status()
    assert mine.post(f"/v1/webhooks/{made['id']}/rotate?grace=0").status_code == 400
    assert mine.delete("/v1/memories/toy.kept?wait=60").status_code == 400
    assert mine.get("/v1/memories/toy.kept").status_code == 200
    acts = mine.get("/v1/admin/audit?journal=tenants&order=asc").json()["data"]
    assert [(each["act"], each["outcome"]) for each in acts[-4:]] == [
        ("webhook.rotate", "begun"),
        ("webhook.rotate", "refused"),
        ("memory.delete", "begun"),
        ("memory.delete", "refused"),
    ]


def test_a_body_that_nobody_reads_is_refused(mine: httpx.Client):
    """Where there is none in the document: what was said in it would do nothing. An empty object says nothing."""
    document = mine.get("/openapi.json").json()
    made = mine.post("/v1/webhooks", json={"url": "http://127.0.0.1:9/"}).json()
    place = f"/v1/webhooks/{made['id']}/rotate"
    told = _refusal(mine.post(place, json={"grace_s": 0}))
    said = f"POST {place} reads no body; what it takes goes into its query: grace_s"
    assert told == (400, "invalid_request", None, said)
    for method, path in NEEDED:
        if method == "GET" or "requestBody" in document["paths"][path][method.lower()]:
            continue
        url = path.replace("{", "").replace("}", "")
        for body in (b'{"a": 1}', iter([b"{}"])):
            status, code, _, said = _refusal(mine.request(method, url, content=body))
            assert (status, code) == (400, "invalid_request"), (method, path)
            assert "reads no body" in said
        assert mine.request(method, url, content=b"{}").status_code == 404, (method, path)
    assert mine.request("GET", "/v1/models", content=b'{"a": 1}').status_code == 200


def test_a_member_is_given_once(http: httpx.Client):
    """Of two values one would be passed over, whichever it is."""
    told = _refusal(http.get("/v1/jobs?limit=1&limit=2&status=failed"))
    assert told == (400, "invalid_value", "limit", "limit: given 2 times, expected once")


def test_no_member_takes_a_list(http: httpx.Client):
    """So that one which is repeated is always too much."""
    document = http.get("/openapi.json").json()
    for operations in document["paths"].values():
        for operation in operations.values():
            for member in operation.get("parameters", ()):
                assert "array" not in str(member["schema"].get("type")), member


def test_a_query_of_nothing_is_none(http: httpx.Client):
    """A question mark alone, and empty members between marks."""
    for query in ("", "&", "&&limit=1&"):
        assert http.get(f"/v1/jobs?{query}").status_code == 200


def test_without_a_key_a_query_may_have_anything(http: httpx.Client):
    """Who asks there adds to URLs what he likes, such as something that no cache has seen."""
    for path in ("/livez", "/metrics", "/openapi.json", "/docs", "/docs/show.js"):
        assert http.get(path, params={"_": "1"}).status_code == 200
    assert http.get("/readyz?exclude=workers&utm_source=mail").status_code == 200


def test_what_the_openai_api_lists_with_is_known(client: openai.OpenAI):
    """Every member that its client has a name for, at the routes that it and we have; others are told by its typed error."""
    assert set(FileListParams.__annotations__) == {"after", "limit", "order", "purpose"}
    file_id = f"file-{'0' * 36}"
    assert client.files.list(after=file_id, limit=1, order="desc", purpose="batch").data == []
    assert set(BatchListParams.__annotations__) == {"after", "limit"}
    assert client.batches.list(after=f"batch_{'0' * 36}", limit=1).data == []
    with pytest.raises(
        openai.BadRequestError, match="before: unknown member of the query; known here: after"
    ):
        client.files.list(extra_query={"before": file_id})
