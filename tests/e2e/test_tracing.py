"""One trace from the client's own span through the API and Redis to the worker, as a real collector sees it."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from patience import PATIENCE_S

from tests.e2e.telemetry_watch import SeenSpan, Watched, watched_service

TRACE_ID, CLIENT_SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{CLIENT_SPAN_ID}-01"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The service, with a second worker and a collector."""
    with watched_service(
        tmp_path_factory.mktemp("traced"), SPARKE_BATCH_WINDOW_MS="1000", SPARKE_LOG_FORMAT="json"
    ) as watched:
        yield watched


def generate(service: Watched, **members: object) -> httpx.Response:
    """Asks for an image."""
    headers = members.pop("headers", {})
    body = {"prompt": "a purple heron", "model": "toy", **members}
    return httpx.post(f"{service.url}/v1/images/generations", json=body, headers=headers, timeout=60)


def names_of(spans: list[SeenSpan], trace_id: str) -> list[str]:
    """The names of the spans of a trace, sorted."""
    return sorted(each.name for each in spans if each.trace_id == trace_id)


def test_a_request_is_one_trace(service: Watched):
    """From the client's span on: the request, its acceptance, the queue, the job, and each part of the work."""
    answer = generate(service, headers={"traceparent": PARENT, "x-request-id": "req-traced"}, n=2)
    assert answer.status_code == 200
    spans = service.collector.wait_for(
        lambda spans: {"job", "POST /v1/images/generations"} <= set(names_of(spans, TRACE_ID))
    )
    found = [each for each in spans if each.trace_id == TRACE_ID]
    assert names_of(spans, TRACE_ID) == sorted(
        [
            *("POST /v1/images/generations", "accept job", "queued", "job", "encode prompt", "batch"),
            *("denoise", "decode", "encode PNG", "encode PNG", "store image", "store image", "commit"),
        ]
    )
    one = {each.name: each for each in found}
    request, accepted, job = one["POST /v1/images/generations"], one["accept job"], one["job"]
    assert request.parent_id == CLIENT_SPAN_ID
    assert accepted.parent_id == request.span_id
    assert one["queued"].parent_id == job.parent_id == accepted.span_id
    assert one["denoise"].parent_id == one["decode"].parent_id == one["batch"].span_id
    for name in ("encode prompt", "batch", "encode PNG", "store image", "commit"):
        assert one[name].parent_id == job.span_id, name
    assert one["denoise"].end_ns == one["decode"].start_ns
    assert one["queued"].end_ns <= job.end_ns
    assert (request.service, job.service) == ("sparke-api", "sparke-worker")
    assert request.instance != job.instance
    assert (
        job.attributes.items()
        >= {
            "sparke.model": "toy",
            "sparke.num_images": 2,
            "sparke.steps": 3,
            "sparke.tenant_id": "default",
            "sparke.request_id": "req-traced",
            "sparke.state": "succeeded",
        }.items()
    )
    assert request.attributes["http.response.status_code"] == 200


def test_jobs_of_one_batch_are_linked_with_it(service: Watched):
    """The batch with each of its jobs, in whichever traces they are, and each of them with the batch."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: generate(service, seed=seed, steps=2), range(8)))
    assert {answer.status_code for answer in answers} == {200}

    def shared(spans: list[SeenSpan]) -> list[SeenSpan]:
        return [each for each in spans if each.name == "batch" and each.attributes["sparke.num_jobs"] > 1]

    def are_here(spans: list[SeenSpan]) -> bool:
        ids = {each.span_id for each in spans}
        return any(each.links <= ids for each in shared(spans))

    spans = service.collector.wait_for(are_here)
    by_id = {each.span_id: each for each in spans}
    batch = next(each for each in shared(spans) if each.links <= set(by_id))
    jobs = [by_id[span_id] for span_id in batch.links]
    assert len(jobs) == batch.attributes["sparke.num_jobs"] > 1
    assert {job.name for job in jobs} == {"job"}
    assert len({job.trace_id for job in jobs}) == len(jobs)
    assert all(batch.span_id in job.links for job in jobs)
    assert batch.parent_id in batch.links


def test_questions_and_memories_have_their_spans(service: Watched):
    """A second image reads the memory; a question is a job as well."""
    generate(service)
    generate(service)
    memory = httpx.get(f"{service.url}/v1/memories", timeout=PATIENCE_S).json()["data"][0]["id"]
    asked = httpx.post(
        f"{service.url}/v1/memories/{memory}/search", json={"prompt": "a purple heron"}, timeout=60
    )
    assert asked.status_code == 200, asked.text
    spans = service.collector.wait_for(
        lambda spans: any(
            each.attributes.get("sparke.kind") == "search" and each.name == "job" for each in spans
        )
    )
    job = next(
        each for each in spans if each.attributes.get("sparke.kind") == "search" and each.name == "job"
    )
    assert {"encode prompt", "memory sync", "memory search", "job"} <= set(names_of(spans, job.trace_id))


def test_lines_of_the_log_name_their_trace(service: Watched):
    """The line of the request and that of its job, in two processes, have the ids of one trace."""
    given = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    generate(service, headers={"traceparent": given, "x-request-id": "req-logged"})
    ended = service.wait_for_line("job_ended", request_id="req-logged")
    request = service.wait_for_line("request_ended", request_id="req-logged")
    assert ended["trace_id"] == request["trace_id"] == given.split("-")[1]
    assert ended["span_id"] != request["span_id"]
    assert "worker_id" in ended
    assert ended["tenant_id"] == request["tenant_id"] == "default"
    assert request.items() >= {"route": "/v1/images/generations", "status": 200, "method": "POST"}.items()


def test_what_the_client_does_not_sample_is_not_sent(service: Watched):
    """The flag of its traceparent holds in the worker as well."""
    given = "00-2af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    assert generate(service, headers={"traceparent": given}).status_code == 200
    assert generate(service, headers={"traceparent": PARENT.replace("0af", "3af")}).status_code == 200
    spans = service.collector.wait_for(lambda spans: "job" in names_of(spans, TRACE_ID.replace("0af", "3af")))
    assert names_of(spans, TRACE_ID.replace("0af", "2af")) == []


def test_probes_and_unknown_routes(service: Watched):
    """Probes have no spans, and what is at no route is named by none of its path."""
    for path in ("/livez", "/readyz", "/metrics", "/a/purple/heron?prompt=purple"):
        httpx.get(service.url + path, timeout=PATIENCE_S)
    spans = service.collector.wait_for(lambda spans: any(each.name == "GET unmatched" for each in spans))
    assert not [
        each for each in spans if "livez" in each.name or "readyz" in each.name or "metrics" in each.name
    ]


def test_no_span_holds_a_prompt(service: Watched):
    """Nothing that was sent to the collector in this module has a word of one."""
    assert sum(map(len, service.collector.raw)) > 1000
    assert not [body for body in service.collector.raw if b"heron" in body]


REFUSE = """
import sys
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto")):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refusing())
"""


def test_without_the_extra_everything_runs(tmp_path: Path):
    """Where the SDK is not installed an endpoint is a warning that says what to install, and images are made."""
    with watched_service(tmp_path, prelude=REFUSE, SPARKE_LOG_FORMAT="json") as watched:
        assert generate(watched, headers={"traceparent": PARENT}).status_code == 200
        warning = watched.wait_for_line("traces_not_exported")
        assert "pip install 'sparke[otel]'" in warning["reason"]
        assert watched.collector.spans == []
        assert watched.wait_for_line("job_ended")["trace_id"] == TRACE_ID


def test_without_an_endpoint_nothing_is_set_up():
    """No exporter is loaded, and there is no provider of spans; redis-py loads the SDK's metrics where it is installed."""
    code = (
        "import sys, app.http.process.main, app.worker.main\n"
        "from app.telemetry.exporting import exporting_traces\n"
        "with exporting_traces('x'): pass\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk.trace', 'opentelemetry.exporter'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf is what there is"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin'"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "-4"}, "max_queue_size must be a positive integer"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "a=b,Basic c2VjcmV0"}, "part 2 of OTEL_EXPORTER_OTLP_HEADERS"),
        ({"OTEL_EXPORTER_OTLP_TRACES_HEADERS": "c2VjcmV0"}, "part 1 of OTEL_EXPORTER_OTLP_TRACES_HEADERS"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Basic c2VjcmV0"}, None),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "c2VjcmV0", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "a=b"}, None),
        ({"OTEL_TRACES_EXPORTER": "none"}, None),
        ({"OTEL_SDK_DISABLED": "TRUE"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
    ],
)
def test_what_cannot_be_done_is_said_once(variables: dict[str, str], said: str | None):
    """A protocol or an exporter that is not there is a warning; tracing that is turned off is none."""
    code = "from app.telemetry.exporting import exporting_traces\nwith exporting_traces('x'): print('runs')"
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", **variables}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert "runs" in done.stdout
    assert (said is None) == ("traces_not_exported" not in done.stdout + done.stderr)
    assert said is None or said in done.stdout + done.stderr
    assert "c2VjcmV0" not in done.stdout + done.stderr
