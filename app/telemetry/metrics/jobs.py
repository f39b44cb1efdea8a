"""Metrics of jobs: how many there are, how long they wait, how they end."""

from prometheus_client import Counter, Gauge, Histogram

from app.telemetry.metrics.declaring import API, BOTH, MODEL, OTHER, WORKER, Declarations, Declared, Label

_WAIT_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
_ANSWER_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_END = Label("state", ("succeeded", "failed", "cancelled", "expired"))
_QUESTION = Label("kind", ("search", "preview", "stats"))
LANES = ("interactive", "batch")
FAILURE_REASONS = (
    "invalid_request",
    "reference_not_found",
    "memory_version_gone",
    "picture_gone",
    "unavailable",
    "store_unavailable",
    "corrupt_record",
    "lora_not_loadable",
    "broken_output",
    "non_finite_latents",
    "output_mismatch",
    "question_failed",
    "encoding_failed",
    "generation_failed",
    "out_of_memory",
    "expired",
    "poison",
    "no_worker",
    OTHER,
)
COMMIT_REASONS = ("fence_lost", "cancelled", "store_unavailable", "corrupt_record", OTHER)


class JobMetrics(Declarations):
    """Jobs."""

    jobs_accepted = Declared(
        Counter,
        "Jobs made durable, by model; lines of batches and questions about memories among them.",
        process=API,
        labels=(MODEL,),
        compare="With `sparke_jobs_finished_total`: what is accepted ends. Questions are among the accepted alone.",
    )
    jobs_refused = Declared(
        Counter,
        "Jobs refused, by model and the code of the answer: a queue was full, or the tenant's images of the day were spent.",
        process=API,
        labels=(MODEL, Label("reason", ("queue_full", "insufficient_quota"))),
        compare="With `sparke_jobs_accepted_total`: `queue_full` above 0 for long means too few workers.",
    )
    jobs_cancelled = Declared(
        Counter,
        "Jobs that were cancelled before they ran, each once: by clients, with their batch or with their tenant. Cancelled ones that "
        "ran are among the finished.",
        process=API,
    )
    jobs_finished = Declared(
        Counter,
        "Jobs that this process ended, by model and terminal state. Questions about memories are counted elsewhere, and a "
        "job that was cancelled before it ran is in `sparke_jobs_cancelled_total` alone.",
        process=BOTH,
        labels=(MODEL, _END),
        compare="`failed` and `expired` with `succeeded`.",
    )
    job_failures = Declared(
        Counter,
        "Jobs that this process ended as failed or expired, by model and the stable code of what went wrong, questions among "
        "them; a code that is not listed is `other`.",
        process=BOTH,
        labels=(MODEL, Label("reason", FAILURE_REASONS)),
        compare="With `sparke_jobs_finished_total`. `invalid_request`, `reference_not_found`, `memory_version_gone` and "
        "`picture_gone` are clients' faults, `poison` is a request that workers die of.",
    )
    jobs_fence_lost = Declared(
        Counter,
        "Jobs that this worker found to be another's, or ended, at any time after it had taken them, by model.",
        process=WORKER,
        labels=(MODEL,),
        compare="With 0, but for deploys, and for jobs that a stalled worker had lost: those are in `sparke_jobs_redelivered_total`.",
    )
    commit_failures = Declared(
        Counter,
        "Attempts to commit what was made for a job that wrote nothing, by model and reason: somebody else had taken the job, it was "
        "cancelled meanwhile, Redis did not answer (tried again), or a stored record could not be read.",
        process=WORKER,
        labels=(MODEL, Label("reason", COMMIT_REASONS)),
        compare="With `sparke_images_total`. `cancelled` is no fault; `store_unavailable` is an outage of Redis.",
    )
    job_wait_seconds = Declared(
        Histogram,
        "Time from a job's creation to its start, by model and lane: lines of batches are `batch`, and wait for all others. Jobs that "
        "start again count again.",
        process=WORKER,
        labels=(MODEL, Label("lane", LANES)),
        compare="`interactive` with `sparke_batch_seconds`: a wait of several batches means too few workers.",
        buckets=_WAIT_S,
        from_start=True,
    )
    question_seconds = Declared(
        Histogram,
        "Time from a question about a memory to its end, by model, kind and terminal state.",
        process=WORKER,
        labels=(MODEL, _QUESTION, _END),
        compare="With `sparke_batch_seconds`: a question's prompt has its turn on the device between two batches.",
        buckets=_ANSWER_S,
    )


class QueueMetrics(Declarations):
    """The queue."""

    jobs_open = Declared(
        Gauge,
        "Unfinished jobs and questions of all tenants, by model: the backlog, waiting and running. Every API process tells the same "
        "number: take the largest.",
        process=API,
        labels=(MODEL,),
        compare="With the images that all workers hold at once, `SPARKE_MAX_BATCH_IMAGES` each: workers are added on it.",
    )
    jobs_waiting = Declared(
        Gauge,
        "Unfinished jobs and questions of all tenants that no worker holds, by model. Every API process tells the same number: take the "
        "largest.",
        process=API,
        labels=(MODEL,),
        compare="With `sparke_jobs_open`; the difference is what workers hold.",
    )
    jobs_running = Declared(
        Gauge,
        "Jobs that this worker holds now, in its batch or about to be, by model. Add the workers up.",
        process=WORKER,
        labels=(MODEL,),
        compare="With `sparke_jobs_open`: above it never for long.",
    )
    jobs_oldest_seconds = Declared(
        Gauge,
        "Age of the oldest unfinished job, by model; 0 where there is none. Every API process tells the same: take the largest.",
        process=API,
        labels=(MODEL,),
        compare="With `SPARKE_REQUEST_TIMEOUT_S`: whoever waited has given up beyond it. Lines of batches may be as old as a day.",
    )
    jobs_redelivered = Declared(
        Counter,
        "Jobs that this worker gave to others because their worker was silent, by model. It need not be what failed.",
        process=WORKER,
        labels=(MODEL,),
        compare="With 0: each is a worker that died or stalled for `SPARKE_HEARTBEAT_TTL_S`.",
    )
    jobs_repaired = Declared(
        Counter,
        "Jobs that a sweep by this worker ended or brought back on their way after a crash.",
        process=WORKER,
        compare="With 0, but for crashes and fail-overs.",
    )
    dead_letters = Declared(
        Gauge,
        "Jobs kept for the operator because no worker could do them, by model. Every API process tells the same number: take "
        "the largest.",
        process=API,
        labels=(MODEL,),
        compare="With its own value before: a growing one is a request, or a release, that workers die of.",
    )
