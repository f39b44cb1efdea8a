"""What a worker's log has of its jobs, and what it has not, where the engine fails with a prompt in its mouth."""

import io
import json
import logging
from dataclasses import replace

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.domain.ids import WorkerId
from app.domain.job import JobState, Origin
from app.jobs.types import ReservedJob
from app.telemetry.logs import OURS, configure_logs
from app.worker.course.job_spans import JobSpans, _Open
from sparke_engine.diffusion.toy import ToyEngine
from sparke_engine.guidance.presets import preset_named

pytestmark = pytest.mark.anyio

PROMPT = "purple heron"


class Talkative(ToyEngine):
    """The toy, which repeats prompts where it fails, in errors and in lines of a library."""

    def __init__(self) -> None:
        super().__init__(preset_named("toy"))
        self.fails_to_embed = False

    def embed_prompts(self, prompts):
        """As the toy, once it has said what it was given."""
        logging.getLogger("transformers.tokenization").warning("truncated: %s", prompts)
        if self.fails_to_embed:
            raise KeyError(prompts[0])
        return super().embed_prompts(prompts)

    def generate(self, groups, *_):
        """An error with another one as its cause."""
        try:
            {}[groups[0].prompt]
        except KeyError as error:
            raise ValueError(f"cannot make {groups[0].prompt}") from error


@pytest.fixture
def lines():
    """Logs this process at debug; what it wrote."""
    root, stream = logging.getLogger(), io.StringIO()
    before, config = (root.handlers[:], root.level), structlog.get_config()
    configure_logs("json", "debug", stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.configure(**config)
    root.handlers[:], level = before
    root.setLevel(level)
    logging.captureWarnings(False)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.mark.parametrize("fails_to_embed", [False, True])
async def test_an_engine_that_fails_with_a_prompt_is_logged_without_it(
    open_bench, make_job, lines, fails_to_embed
):
    """The job, its tenant, its request and the code's place are told; what the engine said is not."""
    engine = Talkative()
    engine.fails_to_embed = fails_to_embed
    jobs = [
        replace(make_job(number, prompt=PROMPT, negative_prompt=PROMPT), origin=Origin(f"req-{number}"))
        for number in (1, 2)
    ]
    records = await open_bench(engine=engine).run(*jobs)
    assert {record.state for record in records} == {JobState.FAILED}
    assert "heron" not in json.dumps(lines())
    event = "job_not_prepared" if fails_to_embed else "job_not_generated"
    failed = [line for line in lines() if line["event"] == event]
    assert {line["request_id"] for line in failed} == {"req-1", "req-2"}
    assert {line["tenant_id"] for line in failed} == {"acme"}
    place = "embed_prompts" if fails_to_embed else "generate"
    assert all(f"in {place}" in line["exception"] for line in failed)
    ended = [line for line in lines() if line["event"] == "job_ended"]
    assert {(line["job_id"], line["state"], line["code"]) for line in ended} == {
        (job.job_id, "failed", "generation_failed") for job in jobs
    }
    assert len({line["run_id"] for line in lines() if "run_id" in line}) == 1


async def test_what_leaves_a_job_as_an_error_is_not_in_its_span(make_job):
    """The span of a job has neither the message nor the traceback of what went wrong, which may hold its prompt."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans, reserved = JobSpans(), ReservedJob(make_job(1, prompt=PROMPT), 1, WorkerId("w"), "1-0", 0)
    with spans.during([reserved]):
        spans._open[(reserved.job.job_id, 1)] = _Open(provider.get_tracer("test").start_span("job"), 0.0)
        with pytest.raises(KeyError), spans.within(reserved):
            raise KeyError(PROMPT)
    (told,) = exporter.get_finished_spans()
    assert "heron" not in told.to_json()


async def test_the_end_of_a_job_says_what_it_took(bench, make_job, lines):
    """How long it waited and ran, its images, their push, and how large the batch was."""
    await bench.run(make_job(1, num_images=2))
    job = replace(make_job(2, seed=50, prompt="a red circle"), origin=Origin("req-9"))
    await bench.run(job)
    (line,) = [line for line in lines() if line.get("request_id") == "req-9" and line["event"] == "job_ended"]
    assert (
        line.items()
        >= {
            "state": "succeeded",
            "model": "toy",
            "kind": "generate",
            "lane": "interactive",
            "num_images": 1,
            "num_batch_images": 1,
            "num_neighbours": 2,
            "prompt": "[redacted]",
            "job_id": job.job_id,
        }.items()
    )
    assert line["push"] > 0
    assert 0 < line["ran_s"] < 60
    assert line["waited_s"] > 0
