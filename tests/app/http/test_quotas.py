"""Quotas over HTTP: what is refused, with which headers, and what is not charged."""

import httpx
import openai
import pytest
from patience import PATIENCE_S

from app.http.guard.rate_limit import IMAGES_LIMIT, IMAGES_REMAINING, IMAGES_RESET, LIMIT, REMAINING, RESET

JOB = {"model": "unserved", "prompt": "x"}


def test_requests_a_minute_hold_over_replicas(serve_api, own_database):
    """Each answer says what is left, whatever was asked; the one beyond is 429, says when, and reaches nothing."""
    own = own_database.model_copy(update={"requests_per_minute": 4})
    urls = [serve_api(own), serve_api(own)]
    asked = ["/v1/models", "/v1/files", "/v1/jobs/none", "/v1/batches"]
    answers = [httpx.get(urls[n % 2] + path, timeout=PATIENCE_S) for n, path in enumerate(asked)]
    assert [answer.status_code for answer in answers] == [200, 200, 404, 200]
    assert {answer.headers[LIMIT] for answer in answers} == {"4"}
    assert [answer.headers[REMAINING] for answer in answers] == ["3", "2", "1", "0"]
    assert all(answer.headers[RESET].endswith("s") for answer in answers)
    refused = httpx.post(f"{urls[0]}/v1/jobs", json=JOB, timeout=PATIENCE_S)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert (refused.headers[LIMIT], refused.headers[REMAINING]) == ("4", "0")
    assert 1 <= int(refused.headers["retry-after"]) <= 15
    assert httpx.get(f"{urls[0]}/livez", timeout=PATIENCE_S).status_code == 200
    assert LIMIT not in httpx.get(f"{urls[0]}/livez", timeout=PATIENCE_S).headers


def test_with_a_rate_the_headers_tell_of_it_and_a_429_of_its_own_reason(serve_api, own_database):
    """An accepted job says the requests that are left; one that the queue has no room for, its own bound."""
    own = own_database.model_copy(update={"requests_per_minute": 100, "max_waiting_jobs_per_tenant": 1})
    with httpx.Client(base_url=serve_api(own), timeout=PATIENCE_S) as http:
        accepted, full = http.post("/v1/jobs", json=JOB), http.post("/v1/jobs", json=JOB)
    assert (accepted.status_code, accepted.headers[LIMIT], accepted.headers[REMAINING]) == (202, "100", "99")
    assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
    assert (full.headers[LIMIT], full.headers[REMAINING]) == ("1", "0")


def test_what_was_refused_is_counted_by_its_reason(serve_api, own_database):
    """A full queue wants more workers; a tenant whose images of the day are spent does not."""
    own = own_database.model_copy(update={"images_per_day": 2, "max_waiting_jobs_per_tenant": 1})
    with httpx.Client(base_url=serve_api(own), timeout=PATIENCE_S) as http:
        answers = [http.post("/v1/jobs", json={**JOB, "n": n}) for n in (3, 1, 1)]
        told = http.get("/metrics").text
    assert [answer.status_code for answer in answers] == [429, 202, 429]
    for reason in ("insufficient_quota", "queue_full"):
        assert f'sparke_jobs_refused_total{{model="{JOB["model"]}",reason="{reason}"}} 1.0' in told


def test_images_a_day_are_charged_once_and_refused_with_what_is_left(serve_api, own_database):
    """A repetition is the same job; what is refused or cancelled is not charged; waiting is of no use to a client."""
    own = own_database.model_copy(update={"images_per_day": 5})
    with httpx.Client(base_url=serve_api(own), timeout=PATIENCE_S) as http:
        key = {"idempotency-key": "a"}
        answers = [http.post("/v1/jobs", json={**JOB, "n": 3}, headers=key) for _ in range(3)]
        assert {answer.json()["id"] for answer in answers} == {answers[0].json()["id"]}
        assert {answer.headers[IMAGES_REMAINING] for answer in answers} == {"2"}
        refused = http.post("/v1/images/generations", json={**JOB, "n": 3})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
        assert (refused.headers[IMAGES_LIMIT], refused.headers[IMAGES_REMAINING]) == ("5", "2")
        assert LIMIT not in refused.headers
        assert refused.headers[IMAGES_RESET].endswith("s")
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        http.post(f"/v1/jobs/{answers[0].json()['id']}/cancel")
        again = http.post("/v1/jobs", json={**JOB, "n": 5})
        assert (again.status_code, again.headers[IMAGES_REMAINING]) == (202, "0")


def test_the_official_client_does_not_try_a_spent_day_again(serve_api, own_database):
    """RateLimitError at once, unless the day is about to end."""
    url = serve_api(own_database.model_copy(update={"images_per_day": 0}))
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=2, timeout=PATIENCE_S) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        client.images.generate(prompt="a star")
    assert caught.value.code == "insufficient_quota"
    is_over_soon = caught.value.response.headers["retry-after"] != "120"
    assert is_over_soon or caught.value.response.headers["x-should-retry"] == "false"


def test_usage_says_what_was_used(serve_api, own_database):
    """Jobs and images at once, requests within seconds; the quotas beside them, and what is stored."""
    with httpx.Client(
        base_url=serve_api(own_database.model_copy(update={"images_per_day": 50})), timeout=PATIENCE_S
    ) as http:
        http.post("/v1/jobs", json={**JOB, "n": 3})
        form = {"file": ("a.jsonl", b"{}"), "purpose": (None, "batch")}
        assert http.post("/v1/files", files=form).status_code == 200
        used = http.get("/v1/usage").json()
    assert (used["object"], used["tenant_id"]) == ("usage", "default")
    assert (used["quotas"]["images_per_day"], used["quotas"]["requests_per_minute"]) == (50, None)
    assert (used["memory_entries"], used["stored_bytes"]) == (0, {"files": 2, "images": 0})
    [today] = used["data"]
    assert (today["jobs"], today["images"]) == (1, 3)
    assert len(today["date"]) == len("2026-01-31")
