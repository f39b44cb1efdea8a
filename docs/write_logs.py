"""Writes docs/logs.md from the calls of loggers in `app`: `make docs`. A test fails where it is stale, or an event has no meaning."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TARGET = Path(__file__).with_name("logs.md")
APP = Path(__file__).resolve().parents[1] / "app"
LEVELS = ("debug", "info", "warning", "error", "exception")
JOB_IDS = ("job_id", "tenant_id", "request_id")
# Functions that log an event which they are given by name: its level and its fields.
TOLD_BY = {
    "repeat": ("warning", ("reason",)),
    "quietly": ("warning", ("reason",)),
    "fail_for": ("warning", (*JOB_IDS, "code", "exception")),
    "carry_out": ("warning", (*JOB_IDS, "code", "exception")),
    "_show_new": ("info", ("key_id", "scopes", "tenant_id")),
    "_sweeping": ("warning", ("error",)),
    "push_async_callback": ("warning", ("reason",)),  # of `quietly`
}

HEAD = """# Logs

Events of the service, written by `make docs` from the calls that log them. Do not edit.

Every process writes one JSON object a line to standard error, or columns where that is a terminal (`SPARKE_LOG_FORMAT`).
From which level on is `SPARKE_LOG_LEVEL` for the service's own modules, and `SPARKE_LOG_LEVELS` for single ones and for libraries,
which otherwise write from warnings on: `SPARKE_LOG_LEVELS=app.worker=debug,app.http=warning,httpx=info`.

Each line has `time`, `level`, `logger` (the module), `event`, and what is known where it was written:

| field | where | what |
|---|---|---|
| `request_id` | in the API during a request; in a worker during its job | the answer's `x-request-id`, which a client may choose itself; lines of batches have none, their `job_id` has the digits of the answer's `request_id` |
| `tenant_id` | during a request, once its key is known, and during a job | whose it is |
| `job_id` | during a job | the job's id |
| `worker_id` | in a worker | which start of which process |
| `run_id` | in a worker | one for all jobs that the device does at once |
| `trace_id`, `span_id` | where there is a trace ([tracing](tracing.md)) | of OpenTelemetry |
| `exception` | where something failed | the traceback, with its causes and without locals |

So one request is `jq 'select(.request_id == "req_…")'` over the lines of all processes: the API's `request_ended` and the worker's
`job_ended` say what it took, and in between is what went wrong, if anything did.

## What is not in them

Prompts, keys, passwords, signatures of URLs, request bodies, and paths and queries of requests (their route is there). Secrets go by
their name and by their looks. A library's line that comes while a job or a request is worked on is `[withheld: …]` with the place it came
from, since tokenizers repeat what they cut; and of an error's message only those of our own errors, of the system, Redis, the object
store and torch are told. `SPARKE_LOG_PROMPTS=true` shows both and the prompts of jobs, for the search of an error. Secrets it does not show.

## Events
"""

MEANINGS = {
    "api_key_made": "an administrator made a key",
    "api_key_left_out": "the record of a key cannot be read; nobody gets in with it",
    "api_key_revoked": "an administrator ended a key",
    "api_key_rotated": "an administrator replaced a key",
    "audit": "an act, as the audit log has it",
    "audit_record_left_out": "a record of the audit log cannot be read",
    "audit_record_lost": "an act's record could not be written after the act began",
    "background_ended": "something that runs beside the service ended with an error as it was stopped",
    "background_task_failed": "what was to be done after an answer was not",
    "batch_cap_lowered": "the device had no room for a batch; later ones of that shape are smaller",
    "batch_cap_raised": "batches of a shape may be larger again",
    "batch_ended": "a batch of requests is over",
    "batch_failed_each_job_runs_alone": "a device batch failed; each of its jobs is run once more by itself",
    "batch_failed_to_go_on": "driving a batch of requests hit a fault; it is tried again",
    "batch_left_to_others": "a store has been away from this process for half a minute: others may have the batch",
    "batch_lease_lost": "another process drives this batch now",
    "batch_lease_not_extended": "Redis did not answer in time; the batch may go to another process",
    "batch_record_skipped": "a batch cannot be read, and is not listed",
    "batch_waits_for_store": "a batch stands still until Redis or the object store answers",
    "batches_not_seen": "looking for batches to drive failed; it is tried again",
    "client_disconnected": "the client went away before it had its answer",
    "data_migrated": "one memory has the new form",
    "data_migrating": "how far one memory is",
    "data_migration_begins": "an older data directory is brought to this release's form",
    "data_migration_done": "all of it is",
    "device_abandoned": "the device was still busy when the worker had to end",
    "diversity_not_measured": "the diversity of the last images could not be reckoned; its metric stands still",
    "embedded_redis_ended": "the embedded Redis died; it is started again from its file",
    "embedded_redis_killed": "the embedded Redis did not end when asked",
    "engine_not_closed": "a model's device memory was not given back in order",
    "erasure_failed": "deleting a tenant stopped; it goes on later",
    "failure_not_written": "a job failed and Redis could not be told; its lease will run out",
    "file_left_to_sweep": "bytes of a deleted file remain until the next sweep",
    "file_not_rewritten": "Redis' append-only file could not be rewritten, so what was forgotten is in it still",
    "file_record_skipped": "a file's record cannot be read, and it is not listed",
    "file_sweep_failed": "removing files that nobody needs failed; the next sweep tries again",
    "heartbeat_not_told": "a worker could not say that it lives",
    "image_sweep_failed": "removing images that nobody needs failed; the next sweep tries again",
    "images_left_to_sweep": "images of a job that did not count remain until the next sweep",
    "import_left_to_expire": "what a broken import left remains until it expires",
    "job_ended": "a job's end; `code` where it failed, `push`, `num_neighbours`, `num_batch_images` where it made images, "
    "`prompt` with SPARKE_LOG_PROMPTS",
    "job_given_back": "a stopping worker gave a job to others",
    "job_left_to_its_lease": "Redis is away while the worker stops; others take the job when its lease is over",
    "job_left_to_sweep": "a job's end stands; its tidying is left to the sweep",
    "job_no_longer_ours": "another worker has the job by now; what this one did counts for nothing",
    "job_not_finished": "images were made, and storing or committing them failed",
    "job_not_generated": "the engine failed on a job",
    "job_not_given_back": "Redis is away while the worker stops; the job's lease will run out",
    "job_not_prepared": "reading a job's memory, pictures or prompt failed",
    "job_unreadable": "a job's record cannot be read; the job fails",
    "lease_expired": "a worker fell silent with a job in hand; what became of the job",
    "leases_lost": "this worker was silent for too long; others have its jobs",
    "leases_not_extended": "Redis did not answer as leases were due",
    "leases_not_reclaimed": "looking for jobs of dead workers failed; it is tried again",
    "lora_not_loaded": "a LoRA does not fit its model; jobs that name it fail",
    "memories_dropped": "copies of a deleted tenant's memories are gone",
    "memories_not_dropped": "looking for deleted tenants, or for what was forgotten, failed; it is tried again",
    "memory_entries_dropped": "entries that were forgotten left a worker's copy",
    "memory_entries_not_counted": "how many entries memories have could not be counted; the metric stands still",
    "memory_entry_damaged": "a migration found an entry that cannot be read",
    "memory_entry_left_out": "an entry of a memory cannot be read, and is not among the neighbours",
    "memory_evicted": "a worker's copy made room for others",
    "memory_forgotten": "somebody had entries, or a memory, forgotten",
    "memory_forked": "a memory was copied under another name",
    "memory_rebuilt": "a worker read a memory from its beginning",
    "memory_snapshot_evicted": "a snapshot made room for others",
    "memory_snapshot_not_read": "a snapshot cannot be used; the memory is read from Redis",
    "memory_snapshot_not_removed": "a snapshot that is of no use remains on the disk",
    "memory_snapshot_not_written": "a snapshot could not be written",
    "memory_snapshot_read": "a copy began with a snapshot",
    "memory_snapshot_written": "a large memory has a snapshot",
    "memory_snapshots_not_written": "looking which snapshots to write failed; it is tried again",
    "metrics_not_served": "the port of the worker's metrics is taken",
    "metrics_served": "where the worker's metrics are",
    "model_loaded": "a model is on the device",
    "model_not_loaded": "a model could not be loaded; the worker ends",
    "model_not_warmed_up": "the image that nobody asked for failed; the worker goes on, and requests may fail in the same way",
    "hub_unreachable": "the hub of models did not answer within three seconds; a model that is in its cache is loaded from there, another is tried for",
    "model_progress": "what a worker is at with a model, where no terminal shows it: `waiting`, `downloading`, `loading`, `warming_up`, `ready`",
    "model_warmed_up": "the first image of a model was made, and forgotten",
    "nothing_reserved": "Redis did not answer where a worker asked for jobs",
    "object_store_away": "the object store does not answer at the start; what needs it will wait or be refused",
    "open_batch_unreadable": "a batch cannot be read, and nobody drives it",
    "orphans_removed": "images that nobody committed are gone",
    "picture_left_to_sweep": "pictures of no job remain until the next sweep",
    "pictures_not_encoded": "a job of pictures of one's own failed",
    "previews_given_up": "a job goes on without previews",
    "question_not_answered": "a question of a memory failed",
    "quotas_set": "an administrator set a tenant's quotas",
    "redis_listener_lost": "the connection that hears of Redis' messages broke; it is opened again",
    "redis_master_changed": "sentinels name another master; connections go there",
    "redis_name_unchecked": "TLS to Redis does not check the server's name",
    "redis_sentinels_away": "no sentinel names a master; the last one is used",
    "remains_left_to_sweep": "what was forgotten is out of the memory; what else there is of it goes with the next sweep",
    "remains_sweep_failed": "removing what is left of forgotten images failed; the next sweep tries again",
    "request_ended": "an answer of the API; of probes (`/livez`, `/readyz`, `/metrics`) at debug. `status` null: nobody waited for it",
    "request_failed": "an answer of 5xx, with its code and message",
    "standing_not_read": "a worker could not ask whether its batch is still wanted",
    "stopped_while_redis_was_away": "a worker ended without a word to Redis",
    "store_unavailable": "Redis or the object store does not answer; what was asked is repeated",
    "stream_entry_unreadable": "an entry of a model's stream names no job; it is dropped",
    "sweep_failed": "looking for what a crash left failed; it is tried again",
    "sweep_repaired": "a crash left jobs half done; they are in order now",
    "tenant_deleted": "a deleted tenant's data are gone",
    "tenant_deletion_asked": "an administrator deletes a tenant",
    "traces_exported": "spans are sent to a collector",
    "traces_not_exported": "spans are wanted and not sent; what to do",
    "unexpected_error": "a fault of the service's own, answered as 500",
    "usage_not_written": "counts of requests could not be written; they are kept and written later",
    "variable_unknown": "a variable SPARKE_… is no setting, so nothing heeds it; what may be meant",
    "webhook_disabled": "a webhook failed for so long that it is told no more",
    "webhook_event_unreadable": "an event cannot be read, and nobody is told of it",
    "webhook_given_up": "an event was tried often enough",
    "webhook_look_failed": "looking for events to deliver failed; it is tried again",
    "webhook_not_delivered": "an attempt failed; another follows",
    "webhook_not_settled": "an attempt's outcome could not be written; the event may be told twice",
    "webhook_skipped": "a webhook's record cannot be read",
    "work_abandoned": "a stopping worker did not finish its batch in time; others do it",
    "worker_ended": "the worker of `sparke serve` died; it is started again",
    "worker_not_removed": "a worker ended, and Redis could not be told; it counts until its heartbeat is over",
    "worker_killed": "the worker of `sparke serve` did not end when asked",
    "worker_ready": "a worker takes jobs",
    "worker_spawned": "`sparke serve` has started a worker, which loads its models",
    "worker_stopped": "a worker ended in order",
    "worker_unreadable": "a worker of another release; it is not counted",
}


@dataclass
class Event:
    """What all calls that log one event say of it."""

    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)


def collect() -> dict[str, Event]:
    """All events of `app`, by name."""
    found: dict[str, Event] = {}
    for path in sorted(APP.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            for name, level, fields in _told(call, constants):
                event = found.setdefault(name, Event())
                event.levels.add({"exception": "error"}.get(level, level))
                event.fields |= {*fields, *(("exception",) if level == "exception" else ())}
                event.modules.add(".".join(path.relative_to(APP.parent).with_suffix("").parts))
    return found


def _told(call: ast.Call, constants: dict[str, object]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Name, level and fields of each event that a call may log."""
    kind = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if kind in TOLD_BY:
        level, fields = TOLD_BY[kind]
        for argument in call.args:
            value = (
                constants.get(argument.id)
                if isinstance(argument, ast.Name)
                else getattr(argument, "value", None)
            )
            if isinstance(value, str):
                yield value, level, fields
        return
    receiver = ast.unparse(call.func.value).lower() if isinstance(call.func, ast.Attribute) else kind
    if not call.args or not (
        (kind in LEVELS and "log" in receiver) or (kind == "log" and isinstance(call.func, ast.Name))
    ):
        return
    told = tuple(name for keyword in call.keywords for name in _fields_of(keyword))
    for name in _names(call.args[0]):
        yield name, "info" if kind == "log" else kind, told


def _fields_of(keyword: ast.keyword) -> tuple[str, ...]:
    if keyword.arg is not None:
        return ("exception",) if keyword.arg == "exc_info" else (keyword.arg,)
    return JOB_IDS if ast.unparse(keyword.value).startswith("ids_of") else ()


def _names(argument: ast.expr) -> Iterator[str]:
    if isinstance(argument, ast.IfExp):
        yield from (*_names(argument.body), *_names(argument.orelse))
    elif isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        yield argument.value


def render() -> str:
    """The whole page. Raises ValueError where an event has no meaning here, or a meaning no event."""
    events = collect()
    if different := events.keys() ^ MEANINGS.keys():
        raise ValueError(f"docs/write_logs.py: MEANINGS and the events of app differ in {sorted(different)}")
    lines = [HEAD, "\n| event | level | what it means | its fields |\n|---|---|---|---|\n"]
    for name, event in sorted(events.items()):
        levels = ", ".join(level for level in LEVELS if level in event.levels)
        fields = ", ".join(f"`{each}`" for each in sorted(event.fields))
        lines.append(f"| `{name}` | {levels} | {MEANINGS[name]} | {fields} |\n")
    return "".join(lines)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
