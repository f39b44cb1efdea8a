"""The dashboard overview: Is the service well?"""

from panels import Board, Panel, Query, Row
from queries import HERE, MODEL, USERS, lately, quantiles, rate

OVERVIEW = Board(
    "overview",
    "SPARKE: overview",
    "Is the service well? Requests, jobs, stores, and the alerts that fire.",
    (("namespace", "sparke_build_info"), ("model", "sparke_jobs_open")),
    (
        Row(
            "Now",
            (
                Panel(
                    "Alerts",
                    "Alerts that fire now.",
                    "none",
                    [
                        Query(
                            f'count(ALERTS{{{HERE},alertname=~"Sparke.+",alertstate="firing"}}) or vector(0)'
                        )
                    ],
                    red=1,
                    kind="number",
                    width=3,
                ),
                Panel(
                    "API replicas",
                    "Replicas that Prometheus reaches.",
                    "none",
                    [Query(f'sum(up{{job="sparke-api",{HERE}}}) or vector(0)')],
                    "SparkeApiDown",
                    1,
                    is_low_bad=True,
                    kind="number",
                    width=3,
                ),
                Panel(
                    "Workers ready",
                    "Workers that have the model loaded and take its jobs.",
                    "none",
                    [
                        Query(  # 0 where no worker tells of a model: a panel of one number shows the last that there was
                            f"model:sparke_worker_ready:sum{{{MODEL}}} or on (namespace, model) 0 * model:sparke_jobs_open:max{{{MODEL}}}",
                            "{{model}} {{namespace}}",
                        )
                    ],
                    "SparkeNoWorkerReady",
                    1,
                    is_low_bad=True,
                    kind="number",
                    width=3,
                ),
                Panel(
                    "Backlog",
                    "Unfinished jobs, waiting and running.",
                    "none",
                    [Query(f"sum(model:sparke_jobs_open:max{{{MODEL}}})")],
                    kind="number",
                    width=3,
                ),
                Panel(
                    "Oldest job",
                    "Age of the oldest unfinished job.",
                    "s",
                    [Query(f"max(sparke_jobs_oldest_seconds{{{MODEL}}})")],
                    "SparkeJobsOld",
                    kind="number",
                    width=3,
                ),
                Panel(
                    "Wait of a job, p95",
                    "One job in twenty waits longer before it starts, lines of batches left out; 0 where none started within five minutes.",
                    "s",
                    [Query(f"max(model:sparke_job_wait_seconds:p95_5m{{{MODEL}}}) or vector(0)")],
                    "SparkeQueueSlow",
                    kind="number",
                    width=3,
                ),
                Panel(
                    "Images",
                    "Images made and committed, a second.",
                    "ops",
                    [Query(f"sum(model:sparke_images:rate5m{{{MODEL}}}) or vector(0)")],
                    kind="number",
                    width=3,
                ),
                Panel(
                    "Server errors",
                    "Share of the answers to users with a status of 500 or more.",
                    "percentunit",
                    [Query(f"max(sparke_http_errors:ratio5m{{{HERE}}})")],
                    "SparkeApiErrors",
                    kind="number",
                    width=3,
                ),
            ),
        ),
        Row(
            "Alerts",
            (
                Panel(
                    "What fires, and since when",
                    "Each alert that fires, by installation, model, store or instance; a click leads to its runbook.",
                    "none",
                    [
                        Query(
                            f'max by (alertname, severity, namespace, model, store, instance) (ALERTS{{{HERE},alertname=~"Sparke.+",alertstate="firing"}})',
                            "{{alertname}} {{severity}} {{model}}{{store}}{{instance}} {{namespace}}",
                        )
                    ],
                    red=1,
                    kind="states",
                    width=24,
                ),
            ),
        ),
        Row(
            "Requests",
            (
                Panel(
                    "Answers by status",
                    "Answers to users by status, a second.",
                    "reqps",
                    [rate("sparke_http_requests_total", "status", USERS)],
                ),
                Panel(
                    "Answers by route",
                    "Answers to users by route, a second.",
                    "reqps",
                    [rate("sparke_http_requests_total", "route", USERS)],
                ),
                Panel(
                    "Server errors by route",
                    "Answers with a status of 500 or more by route, a second.",
                    "reqps",
                    [rate("sparke_http_requests_total", "route, status", f'{USERS},status=~"5.."')],
                    "SparkeApiErrors",
                    0.1,
                ),
                Panel(
                    "Time of a request for images",
                    "From its head to the last byte of the answer, with the wait for the images.",
                    "s",
                    quantiles(
                        "sparke_http_request_seconds",
                        match=f'{HERE},route="/v1/images/generations"',
                        shares=(0.5, 0.95, 0.99),
                    ),
                ),
                Panel(
                    "Time of a request by route, p95",
                    "One request in twenty takes longer; those that wait for images are among them.",
                    "s",
                    [Query(f"route:sparke_http_request_seconds:p95_5m{{{HERE}}}", "{{route}} {{namespace}}")],
                ),
                Panel(
                    "Requests in flight",
                    "Requests that are being answered now, by replica.",
                    "none",
                    [Query(f"sparke_http_requests_in_flight{{{HERE}}}", "{{instance}}")],
                ),
            ),
        ),
        Row(
            "Jobs",
            (
                Panel(
                    "Backlog",
                    "Unfinished jobs, those that no worker holds yet, and those that workers hold.",
                    "none",
                    [
                        Query(f"model:sparke_jobs_open:max{{{MODEL}}}", "{{model}} open {{namespace}}"),
                        Query(f"model:sparke_jobs_waiting:max{{{MODEL}}}", "{{model}} waiting {{namespace}}"),
                        Query(f"model:sparke_jobs_running:sum{{{MODEL}}}", "{{model}} running {{namespace}}"),
                    ],
                ),
                Panel(
                    "Time to work off the backlog",
                    "How long the backlog would take at the rate of the last five minutes, if nothing more came.",
                    "s",
                    [
                        Query(
                            f"model:sparke_jobs_open:max{{{MODEL}}} / model:sparke_jobs_finished:rate5m{{{MODEL}}}",
                            "{{model}} {{namespace}}",
                        )
                    ],
                    "SparkeBacklogGrowing",
                ),
                Panel(
                    "Wait of a job",
                    "From a job's creation to its start, lines of batches apart, and the age of the oldest unfinished one.",
                    "s",
                    [
                        *quantiles("sparke_job_wait_seconds", "model, lane", MODEL),
                        Query(f"max by (model) (sparke_jobs_oldest_seconds{{{MODEL}}})", "{{model}} oldest"),
                    ],
                    "SparkeQueueSlow",
                ),
                Panel(
                    "Jobs accepted, ended, refused",
                    "Jobs a second: made durable, ended by state, refused by the code of the answer, cancelled.",
                    "ops",
                    [
                        rate("sparke_jobs_accepted_total", "", MODEL, "accepted"),
                        rate("sparke_jobs_finished_total", "state", MODEL),
                        rate("sparke_jobs_refused_total", "reason", MODEL, "refused, {{reason}}"),
                        rate("sparke_jobs_cancelled_total", legend="cancels"),
                    ],
                ),
                Panel(
                    "Share of jobs that fail",
                    "Failed and expired jobs of all that ended, but for what clients asked wrongly.",
                    "percentunit",
                    [Query(f"model:sparke_job_failures:ratio5m{{{MODEL}}}", "{{model}} {{namespace}}")],
                    "SparkeJobsFailing",
                ),
                Panel(
                    "Failures by reason",
                    "Jobs that failed, by the stable code of what went wrong, a second.",
                    "ops",
                    [
                        Query(
                            f"sum by (model, reason) (rate(sparke_job_failures_total{{{MODEL}}}[$__rate_interval])) > 0",
                            "{{model}} {{reason}}",
                        )
                    ],
                    "SparkeJobsFailing",
                    has_limit=False,
                ),
                Panel(
                    "Stores that did not answer",
                    "Calls of Redis and of the object store in vain, a second.",
                    "ops",
                    [rate("sparke_store_errors_total", "store")],
                    "SparkeStoreAway",
                    0.1,
                ),
                Panel(
                    "Jobs that changed hands",
                    "Jobs within an hour that workers took from a silent one, and that workers found to be another's, or ended.",
                    "suffix: jobs",
                    [
                        lately("sparke_jobs_redelivered_total", "", MODEL, "taken over"),
                        lately("sparke_jobs_fence_lost_total", "", MODEL, "lost"),
                    ],
                    "SparkeJobsRedelivered",
                    1,
                ),
                Panel(
                    "Jobs repaired",
                    "Jobs within fifteen minutes that sweeps brought back or ended.",
                    "suffix: jobs",
                    [Query(f"sum(increase(sparke_jobs_repaired_total{{{HERE}}}[15m]))", "repaired")],
                    "SparkeJobsRepaired",
                ),
                Panel(
                    "Jobs given up",
                    "Jobs within half an hour that became dead letters: each worker that began them died.",
                    "suffix: jobs",
                    [
                        Query(
                            f"clamp_min(max by (namespace, model) (delta(sparke_dead_letters{{{MODEL}}}[30m])), 0)",
                            "{{model}} {{namespace}}",
                        )
                    ],
                    "SparkeDeadLetters",
                    1,
                ),
                Panel(
                    "Dead letters kept",
                    "Dead letters that are kept now, however old; the last thousand or so of a model.",
                    "suffix: letters",
                    [
                        Query(
                            f"max by (namespace, model) (sparke_dead_letters{{{MODEL}}})",
                            "{{model}} {{namespace}}",
                        )
                    ],
                ),
                Panel(
                    "Time of a question",
                    "From a question about a memory to its answer, by kind.",
                    "s",
                    quantiles("sparke_question_seconds", "kind", MODEL),
                ),
            ),
        ),
        Row(
            "Batches and webhooks",
            (
                Panel(
                    "Open batches",
                    "Batches of all tenants that have not ended.",
                    "none",
                    [Query(f"sum(max by (namespace) (sparke_batches_open{{{HERE}}}))", "open")],
                ),
                Panel(
                    "Lines of batches",
                    "Lines of batches that ended, by outcome, a second.",
                    "ops",
                    [rate("sparke_batch_lines_total", "outcome")],
                ),
                Panel(
                    "Batches ended",
                    "Batches within an hour, by the state they ended in.",
                    "none",
                    [lately("sparke_batches_ended_total", "state")],
                ),
                Panel(
                    "Events not yet delivered",
                    "Ends of jobs and batches of which a webhook has not heard.",
                    "none",
                    [Query(f"sum(sparke_webhooks_waiting{{{HERE}}})", "waiting")],
                ),
                Panel(
                    "Webhooks that wait for an event",
                    "Webhooks that have not yet heard of something.",
                    "none",
                    [Query(f"sum(sparke_webhooks_owed{{{HERE}}})", "webhooks")],
                ),
                Panel(
                    "Attempts to deliver",
                    "Attempts by outcome, a second.",
                    "ops",
                    [rate("sparke_webhook_deliveries_total", "outcome")],
                ),
                Panel(
                    "Oldest event not delivered",
                    "Its age; events are given up after two days.",
                    "s",
                    [Query(f"max(sparke_webhooks_oldest_seconds{{{HERE}}})", "oldest")],
                    "SparkeWebhooksStuck",
                ),
            ),
        ),
        Row(
            "Redis, files, versions",
            (
                Panel(
                    "Memory of Redis",
                    "Share of its maxmemory that Redis uses; at all of it nothing is accepted.",
                    "percentunit",
                    [
                        Query(
                            f"max by (namespace) (sparke_redis_memory_used_bytes{{{HERE}}}) / max by (namespace) (sparke_redis_memory_limit_bytes{{{HERE}}})",
                            "used {{namespace}}",
                        )
                    ],
                    "SparkeRedisFull",
                ),
                Panel(
                    "Files taken, deleted, swept",
                    "Files a second; what is swept had expired, or was left by a crash.",
                    "ops",
                    [
                        rate("sparke_files_uploaded_total", legend="taken"),
                        rate("sparke_files_deleted_total", legend="deleted"),
                        rate("sparke_files_swept_total", legend="swept"),
                    ],
                ),
                Panel(
                    "Bytes of files",
                    "Bytes of files that came in and went out, a second.",
                    "Bps",
                    [rate("sparke_file_bytes_total", "direction")],
                ),
                Panel(
                    "Uploads in flight",
                    "Uploads of files and pictures that come in now, by replica.",
                    "none",
                    [Query(f"sparke_file_uploads_in_flight{{{HERE}}}", "{{instance}}")],
                ),
                Panel(
                    "Versions",
                    "Processes by component and version: one version, but for a rollout.",
                    "none",
                    [
                        Query(
                            f"count by (component, version) (sparke_build_info{{{HERE}}})",
                            "{{component}} {{version}}",
                        )
                    ],
                ),
            ),
        ),
    ),
)
