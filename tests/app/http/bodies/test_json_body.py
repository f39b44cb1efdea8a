"""Bodies that are no valid JSON, or of the wrong shape, over the wire."""

import json

import httpx
import pytest

from app.http.errors import PROBLEM_JSON

PATH = "/v1/images/generations"
JSON = {"content-type": "application/json"}


def _error(answer: httpx.Response) -> dict[str, str]:
    assert answer.headers["content-type"] == PROBLEM_JSON
    return answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"prompt": "x"',
        b'{"prompt": "x",}',
        b"{'prompt': 'x'}",
        b'{"prompt": "x"} {}',
        b'{"prompt": "x", "guidance_scale": NaN}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff"}',
        b"\xef\xbb\xbf" * 3,
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_not_json_is_400(http: httpx.Client, body: bytes):
    """Also NaN, half surrogates, bytes that are not UTF-8, and nesting without end."""
    answer = http.post(PATH, content=body, headers=JSON)
    assert (answer.status_code, _error(answer)["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("body", ["[]", '"x"', "3", "null", "true"])
def test_json_that_is_no_object_is_400(http: httpx.Client, body: str):
    """A body is an object."""
    answer = http.post(PATH, content=body, headers=JSON)
    assert (answer.status_code, _error(answer)["code"]) == (400, "invalid_type")


@pytest.mark.parametrize(
    ("members", "param", "code"),
    [
        ({"prompt": 3}, "prompt", "invalid_type"),
        ({"prompt": ["x"]}, "prompt", "invalid_type"),
        ({"n": "2"}, "n", "invalid_type"),
        ({"n": 10**30}, "n", "invalid_value"),
        ({"seed": 1.5}, "seed", "invalid_type"),
        ({"diversity": 0.5}, "diversity", "invalid_type"),
        ({"diversity": {"memory": "default"}}, "diversity.memory", "invalid_type"),
        ({"diversity": {"strength": "high"}}, "diversity.strength", "invalid_type"),
        ({"diversity": {"memory": {"nmae": "x"}}}, "diversity.memory.nmae", "unknown_parameter"),
        ({"promt": "x"}, "promt", "unknown_parameter"),
        ({"x" * 5000: 1}, "x" * 80, "unknown_parameter"),
        ({"prompt": "x" * 4001}, "prompt", "string_above_max_length"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"output_format": "webp"}, "output_format", "invalid_value"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_member_at_fault_is_named(http: httpx.Client, members: dict[str, object], param: str, code: str):
    """The error names the member and says in its code what is wrong; it never repeats a long value."""
    answer = http.post(PATH, json={"prompt": "a star", **members})
    error = _error(answer)
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["message"].startswith(param)
    assert len(answer.content) < 2000


@pytest.mark.parametrize(("given", "shown"), [(None, "null"), (True, "true"), (3, "3")])
def test_a_value_at_fault_is_shown_as_it_was_sent(http: httpx.Client, given: object, shown: str):
    """In the words of JSON and not of Python."""
    answer = http.post(PATH, json={"prompt": given})
    assert _error(answer)["message"] == f"prompt: Input should be a valid string, got {shown}"


def test_a_missing_prompt_is_named(http: httpx.Client):
    """The one member that must be there."""
    answer = http.post(PATH, json={})
    error = _error(answer)
    assert (answer.status_code, error["param"]) == (400, "prompt")
    assert error["code"] == "missing_required_parameter"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_another_content_type_is_415(http: httpx.Client, content_type: str):
    """A page of another origin can send these without asking; JSON it cannot."""
    answer = http.post(PATH, content=b'{"prompt": "x"}', headers={"content-type": content_type})
    assert (answer.status_code, _error(answer)["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("has_length", [True, False])
def test_a_body_beyond_the_limit_is_413(http: httpx.Client, has_length: bool):  # noqa: FBT001
    """With a content-length it is refused unread, else as soon as it is too long."""
    chunk = b" " * 65_536
    content = chunk * 65 if has_length else (chunk for _ in range(65))
    answer = http.post(PATH, content=content, headers=JSON)
    assert (answer.status_code, _error(answer)["code"]) == (413, "request_too_large")


def test_a_long_prompt_within_the_limit_is_400(http: httpx.Client):
    """A prompt of one megabyte is told to be too long, whatever it is made of."""
    for letter in ("x", "é", "\U0001d4c1"):
        body = json.dumps({"prompt": letter * 1_000_000}, ensure_ascii=False).encode()
        answer = http.post(PATH, content=body, headers=JSON)
        assert (answer.status_code, _error(answer)["code"]) == (400, "string_above_max_length")
        assert "4000" in _error(answer)["message"]
