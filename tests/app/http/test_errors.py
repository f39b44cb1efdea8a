"""The table of errors is whole, and every error has the one body."""

import httpx
import pytest

import app.errors
from app.domain.result import Failure
from app.errors import JobFailed, ServiceError, VersionGone
from app.http.error_table import ANSWERS, all_codes, answer_for, code_of, error_of_failure
from app.http.errors import MAX_RETRY_AFTER_S, PROBLEM_JSON


def _all_kinds(kind: type[ServiceError]) -> list[type[ServiceError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _all_kinds(child))]


@pytest.mark.parametrize("kind", _all_kinds(ServiceError), ids=lambda kind: kind.__name__)
def test_every_error_is_mapped_and_documented(kind: type[ServiceError]):
    """Every class has a row of its own, and stands with its code in the tree of the module's docstring."""
    assert kind in ANSWERS
    line = next(line for line in (app.errors.__doc__ or "").splitlines() if kind.__name__ in line.split(" "))
    own_codes = (kind.code, "(the job's own code)")
    assert kind is ServiceError or any(code in line for code in own_codes)


def test_no_answer_asks_for_more_patience_than_clients_have():
    """Every Retry-After is 1 to 120 s, and every 429 and 503 has one."""
    for kind, answer in ANSWERS.items():
        if answer.status == 503:
            assert answer.retry_after_s is not None, kind
        assert answer.retry_after_s is None or 1 <= answer.retry_after_s <= MAX_RETRY_AFTER_S


def test_a_failed_job_keeps_its_meaning():
    """A failure's code chooses the class that has it, and a code of nobody stays as the reason."""
    gone = error_of_failure(Failure("memory_version_gone", "no longer"))
    assert isinstance(gone, VersionGone)
    assert answer_for(gone).status == 410
    other = error_of_failure(Failure("out_of_memory", "too large"))
    assert isinstance(other, JobFailed)
    assert (code_of(other), answer_for(other).status) == ("out_of_memory", 500)
    for code in ("queue_full", "too_many_uploads"):
        assert error_of_failure(Failure(code, "odd")).code == JobFailed.code


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/images/generations/more", 404, "not_found"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/absent", 404, "model_not_found"),
        ("GET", "/v1/images/job_x-0", 400, "missing_required_parameter"),
    ],
)
def test_the_framework_answers_in_the_one_body(
    http: httpx.Client, method: str, path: str, status: int, code: str
):
    """What the framework refuses has the same body as what we refuse."""
    answer = http.request(method, path)
    body = answer.json()
    assert answer.status_code == body["status"] == status
    assert answer.headers["content-type"] == PROBLEM_JSON
    assert set(body) == {"type", "title", "status", "detail", "instance", "error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == code
    assert body["error"]["message"] == body["detail"]
    assert code in all_codes()
    assert body["instance"].endswith(answer.headers["x-request-id"])


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/jobs", "GET, HEAD, POST"),
        ("PUT", "/v1/files/file-x", "DELETE, GET, HEAD"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("GET", "/v1/images/generations", "POST"),
        ("GET", "/v1/images/edits", "POST"),
    ],
)
def test_a_wrong_method_is_told_every_right_one(http: httpx.Client, method: str, path: str, allowed: str):
    """Also where each method of a path is a route of its own, and where the path has the form of an image's."""
    answer = http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json()["detail"].endswith(f"allowed here: {allowed}")
