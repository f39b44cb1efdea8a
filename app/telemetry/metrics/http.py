"""Metrics of requests, files, batches of requests and webhooks: what an API process sees."""

from prometheus_client import Counter, Gauge, Histogram

from app.telemetry.metrics.declaring import API, BOTH, OTHER, Declarations, Declared, Label

_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_ROUTE = Label(
    "route",
    about="a route's template such as `/v1/jobs/{job_id}`, never a path; `unmatched` where there is none",
)
_METHOD = Label("method", (*METHODS, OTHER))
_STATUS = Label("status", about="an HTTP status; `none` where the client went away before an answer")
_ENDS_OF_BATCHES = Label("state", ("completed", "failed", "expired", "cancelled"))
_OUTCOMES_OF_WEBHOOKS = Label(
    "outcome", ("delivered", "rejected", "unreachable", "refused", "gone", "given_up", "dropped")
)


class HttpMetrics(Declarations):
    """Requests."""

    http_requests = Declared(
        Counter,
        "Requests that ended, by route template (not path), method and status code.",
        process=API,
        labels=(_ROUTE, _METHOD, _STATUS),
        compare="The share of `5..` with 0; 429 is a queue or a quota that is full, no fault.",
    )
    http_request_seconds = Declared(
        Histogram,
        "Time from the head of a request to the last byte of its answer, by route template and method.",
        process=API,
        labels=(_ROUTE, _METHOD),
        compare="For images with `sparke_job_wait_seconds` and `sparke_batch_seconds`, which are most of it; for other routes with itself before.",
        buckets=_REQUEST_S,
    )
    http_requests_in_flight = Declared(
        Gauge,
        "Requests that are being answered now; who waits for images or follows a job is among them.",
        process=API,
        compare="With `sparke_jobs_open`: those who wait are in both.",
    )
    store_errors = Declared(
        Counter,
        "Times that Redis or the object store did not answer, or took no writes: a worker's every attempt, heartbeat, look at leases and "
        "sweep of jobs, and of an API process each scrape, upload and picture. Requests that failed by it are those of status 503 in `sparke_http_requests_total`.",
        process=BOTH,
        labels=(Label("store", ("redis", "images", "files")),),
        compare="With 0: any rate that lasts is an outage.",
    )


class FileMetrics(Declarations):
    """Files."""

    files_uploaded = Declared(Counter, "Files that were taken.", process=API)
    files_deleted = Declared(Counter, "Files that clients deleted.", process=API)
    files_swept = Declared(
        Counter,
        "Objects that this process removed because no file names them: expired, or left by a crash.",
        process=API,
        compare="With `sparke_files_uploaded_total`: more than expire is what crashes leave.",
    )
    file_bytes = Declared(
        Counter,
        "Bytes of files, by direction: in (uploads that became files) or out (downloads).",
        process=API,
        labels=(Label("direction", ("in", "out")),),
    )
    file_uploads_in_flight = Declared(
        Gauge,
        "Uploads of files and pictures that come in now.",
        process=API,
        compare="With `SPARKE_MAX_UPLOADS_PER_TENANT` times the tenants that are at it.",
    )


class BatchMetrics(Declarations):
    """Batches of requests."""

    batches_open = Declared(
        Gauge,
        "Batches of all tenants that have not ended. Every API process tells the same number: take the largest.",
        process=API,
    )
    batches_ended = Declared(
        Counter,
        "Batches that this process brought to their end, by the state they ended in.",
        process=API,
        labels=(_ENDS_OF_BATCHES,),
        compare="`failed` and `expired` with `completed`.",
    )
    batch_lines = Declared(
        Counter,
        "Lines of batches that were jobs and ended while this process drove them, by outcome.",
        process=API,
        labels=(Label("outcome", ("completed", "failed")),),
        compare="`failed` with `completed`.",
    )


class WebhookMetrics(Declarations):
    """Webhooks."""

    webhook_deliveries = Declared(
        Counter,
        "Attempts to tell a webhook of an event, and events given up, by outcome.",
        process=API,
        labels=(_OUTCOMES_OF_WEBHOOKS,),
        compare="`delivered` with all.",
    )
    webhooks_waiting = Declared(
        Gauge,
        "Events not yet delivered, one for each webhook, of the tenants that this process sees to. Add the processes up.",
        process=API,
    )
    webhooks_owed = Declared(
        Gauge,
        "Webhooks that have not yet heard of some event, of the tenants that this process sees to. Add the processes up.",
        process=API,
        compare="With 1: a receiver that is away is its tenant's affair; several at once may be ours.",
    )
    webhooks_oldest_seconds = Declared(
        Gauge,
        "Age of the oldest event that waits in this process; 0 where there is none.",
        process=API,
        compare="With some minutes: a receiver that is away is tried for days.",
    )
