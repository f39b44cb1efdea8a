"""How much room a tenant has left: said with every job that is accepted, and with the one that is not."""

import math
import time

import httpx
import pytest
from patience import PATIENCE_S

from app.errors import QueueFull
from app.http.guard.rate_limit import refused_headers, write_duration

LIMIT, REMAINING, RESET = (
    f"x-ratelimit-{name}" for name in ("limit-requests", "remaining-requests", "reset-requests")
)


def test_room_goes_down_to_none(serve_api, own_database):
    """One less for each job that waits; the one beyond is refused with 0 left, and with when all are free again."""
    update = {"max_waiting_jobs_per_tenant": 3}
    begin_s = time.monotonic()
    with httpx.Client(base_url=serve_api(own_database.model_copy(update=update)), timeout=PATIENCE_S) as http:
        answers = [
            http.post("/v1/jobs", json={"model": "unserved", "prompt": "x"}, headers={"idempotency-key": key})
            for key in ("a", "b", "b", "c", "d")
        ]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 202, 429]
    assert {answer.headers[LIMIT] for answer in answers} == {"3"}
    assert [answer.headers[REMAINING] for answer in answers] == ["2", "1", "1", "0", "0"]
    *accepted, refused = [answer.headers.get(RESET) for answer in answers]
    assert accepted == [None] * 4
    waited_s = math.ceil(time.monotonic() - begin_s)  # at most, by the job that has waited longest
    assert refused in [write_duration(number) for number in range(1, waited_s + 1)]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("extra", [{}, {"response_format": "url"}, {"stream": True}])
def test_images_say_it_too(http, extra):
    """With the answer, or with the beginning of the stream."""
    answer = http.post("/v1/images/generations", json={"prompt": "a star", **extra})
    assert (answer.status_code, answer.headers[LIMIT]) == (200, "1000")
    assert 0 < int(answer.headers[REMAINING]) <= 999


def test_images_that_are_refused_say_it_too(serve_api, own_database):
    """The jobs that fill the queue and the request that is refused need not come by the same way."""
    update = {"max_waiting_jobs_per_tenant": 1}
    body = {"model": "unserved", "prompt": "x"}
    with httpx.Client(base_url=serve_api(own_database.model_copy(update=update)), timeout=PATIENCE_S) as http:
        http.post("/v1/jobs", json=body)
        refused = http.post("/v1/images/generations", json=body)
    assert (refused.status_code, refused.headers[LIMIT], refused.headers[REMAINING]) == (429, "1", "0")


def test_where_the_service_is_full_no_bound_of_the_tenant_is_named(serve_api, own_database):
    """It was never asked how many jobs of the tenant wait."""
    update = {"max_open_jobs": 1}
    with httpx.Client(base_url=serve_api(own_database.model_copy(update=update)), timeout=PATIENCE_S) as http:
        first, refused = (http.post("/v1/jobs", json={"model": "unserved", "prompt": "x"}) for _ in range(2))
    assert (first.status_code, refused.status_code) == (202, 429)
    assert "retry-after" in refused.headers
    assert not [name for name in refused.headers if name.startswith("x-ratelimit")]
    assert refused_headers(QueueFull("full", retry_after_s=1)) == {}


@pytest.mark.parametrize(
    ("duration_s", "text"), [(1, "1s"), (59, "59s"), (60, "1m0s"), (3_599, "59m59s"), (90_061, "25h1m1s")]
)
def test_durations_are_written_as_the_openai_api_does(duration_s, text):
    """Hours, minutes and seconds, from the first that is not 0."""
    assert write_duration(duration_s) == text
