"""Every metric of the service, in one class. Base units; labels take few values: never a tenant, job or prompt."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_WAIT_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
_STEP_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_BATCH_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_SEARCH_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
_SYNC_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30)
_LOAD_S = (0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640)
_BATCH_IMAGES = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128, 256)
_NEIGHBOURS = (0, 1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536)
_PUSH = (0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The metrics of one process, on the registry it was given or a new one. `model` is an id of the catalogue."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._add_http()
        self._add_jobs()
        self._add_queue()
        self._add_engine()
        self._add_device()
        self._add_memory()
        self._add_worker()
        self._add_files()
        self._add_batches()
        self._add_webhooks()

    def observe_request(self, method: str, route: str, status: int | None, duration_s: float) -> None:
        """Counts a request; status None where the client went away before an answer, counted as `none`.

        A method that clients made up is counted as `other`.
        """
        known = method if method in _METHODS else "other"
        self.http_requests.labels(route, known, "none" if status is None else str(status)).inc()
        self.http_request_seconds.labels(route, known).observe(duration_s)

    def _add_http(self) -> None:
        registry = self.registry
        self.http_requests = Counter(
            "sparke_http_requests",
            "Requests answered, by route template (not path), method and status code.",
            ("route", "method", "status"),
            registry=registry,
        )
        self.http_request_seconds = Histogram(
            "sparke_http_request_seconds",
            "Time from the first byte of a request to the last byte of its answer, by route template and method.",
            ("route", "method"),
            buckets=_REQUEST_S,
            registry=registry,
        )
        self.http_requests_in_flight = Gauge(
            "sparke_http_requests_in_flight", "Requests being answered now.", registry=registry
        )

    def _add_jobs(self) -> None:
        registry = self.registry
        self.jobs_accepted = Counter(
            "sparke_jobs_accepted", "Jobs made durable, by model.", ("model",), registry=registry
        )
        self.jobs_refused = Counter(
            "sparke_jobs_refused",
            "Jobs refused because a queue was full, by model.",
            ("model",),
            registry=registry,
        )
        self.jobs_cancelled = Counter(
            "sparke_jobs_cancelled",
            "Jobs that clients cancelled before they ran; running ones count among the finished.",
            registry=registry,
        )
        self.jobs_finished = Counter(
            "sparke_jobs_finished",
            "Jobs that this process ended, by model and terminal state; questions about memories are counted elsewhere.",
            ("model", "state"),
            registry=registry,
        )
        self.job_failures = Counter(
            "sparke_job_failures",
            "Jobs that failed, by model and the failure's stable code.",
            ("model", "reason"),
            registry=registry,
        )
        self.jobs_fence_lost = Counter(
            "sparke_jobs_fence_lost",
            "Jobs whose end was refused because somebody else had ended or taken them, by model.",
            ("model",),
            registry=registry,
        )
        self.jobs_open = Gauge(
            "sparke_jobs_open",
            "Unfinished jobs and questions of all tenants, by model: the backlog.",
            ("model",),
            registry=registry,
        )
        self.jobs_running = Gauge(
            "sparke_jobs_running", "Jobs that this worker holds now, by model.", ("model",), registry=registry
        )
        self.job_wait_seconds = Histogram(
            "sparke_job_wait_seconds",
            "Time from a job's creation to its start, by model.",
            ("model",),
            buckets=_WAIT_S,
            registry=registry,
        )
        self.jobs_repaired = Counter(
            "sparke_jobs_repaired",
            "Jobs that a sweep ended or brought back on their way after a crash.",
            registry=registry,
        )

    def _add_queue(self) -> None:
        registry = self.registry
        self.jobs_oldest_seconds = Gauge(
            "sparke_jobs_oldest_seconds",
            "Age of the oldest unfinished job, by model; 0 where there is none.",
            ("model",),
            registry=registry,
        )
        self.question_seconds = Histogram(
            "sparke_question_seconds",
            "Time from a question about a memory to its end, by model, kind and terminal state.",
            ("model", "kind", "state"),
            buckets=_REQUEST_S,
            registry=registry,
        )
        self.dead_letters = Gauge(
            "sparke_dead_letters",
            "Jobs kept for the operator because no worker could do them, by model.",
            ("model",),
            registry=registry,
        )
        self.jobs_redelivered = Counter(
            "sparke_jobs_redelivered",
            "Jobs that this worker gave to others because their worker was silent, by model.",
            ("model",),
            registry=registry,
        )

    def _add_engine(self) -> None:
        registry = self.registry
        self.images = Counter(
            "sparke_images", "Images made and committed, by model.", ("model",), registry=registry
        )
        self.images_expired = Counter(
            "sparke_images_expired",
            "Images that this worker removed because their time to live was over.",
            registry=registry,
        )
        self.images_orphaned = Counter(
            "sparke_images_orphaned",
            "Images that this worker removed because their job had ended without them.",
            registry=registry,
        )

    def _add_device(self) -> None:
        registry = self.registry
        self.batch_images = Histogram(
            "sparke_batch_images",
            "Images in one device batch, by model.",
            ("model",),
            buckets=_BATCH_IMAGES,
            registry=registry,
        )
        self.batch_cap_images = Gauge(
            "sparke_batch_cap_images",
            "Most images in a batch of this worker, the least over sizes and LoRAs, as learned from running out of memory, by model.",
            ("model",),
            registry=registry,
        )
        self.batches_out_of_memory = Counter(
            "sparke_batches_out_of_memory",
            "Batches that the device had no room for, by model; jobs that ran alone among them.",
            ("model",),
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "sparke_batch_seconds",
            "Time the device spent on one batch, decoding included, by model.",
            ("model",),
            buckets=_BATCH_S,
            registry=registry,
        )
        self.denoise_step_seconds = Histogram(
            "sparke_denoise_step_seconds",
            "Time of one denoising step of a batch, guidance included, by model.",
            ("model",),
            buckets=_STEP_S,
            registry=registry,
        )
        self.push = Histogram(
            "sparke_push",
            "Mean over the steps of the push of an image, relative to the norm of its latents, by model.",
            ("model",),
            buckets=_PUSH,
            registry=registry,
        )
        self.neighbours = Histogram(
            "sparke_neighbours",
            "Entries of the memory that an image was pushed away from, by model.",
            ("model",),
            buckets=_NEIGHBOURS,
            registry=registry,
        )

    def _add_memory(self) -> None:
        registry = self.registry
        self.memory_entries_appended = Counter(
            "sparke_memory_entries_appended",
            "Entries appended to memories, by model.",
            ("model",),
            registry=registry,
        )
        self.memory_entries_forgotten = Counter(
            "sparke_memory_entries_forgotten", "Entries that tenants had forgotten.", registry=registry
        )
        self.images_forgotten = Counter(
            "sparke_images_forgotten",
            "Images that this process removed, with what told of them, because they were forgotten.",
            registry=registry,
        )
        self.memory_entries_corrupt = Counter(
            "sparke_memory_entries_corrupt",
            "Entries that were skipped because they are corrupt.",
            registry=registry,
        )
        self.memory_sync_seconds = Histogram(
            "sparke_memory_sync_seconds",
            "Time to bring a worker's copy of a memory up to date before a batch.",
            buckets=_SYNC_S,
            registry=registry,
        )
        self.memory_search_seconds = Histogram(
            "sparke_memory_search_seconds",
            "Time to find the neighbours of one request in a worker's copy of a memory.",
            buckets=_SEARCH_S,
            registry=registry,
        )
        self.memory_cache_bytes = Gauge(
            "sparke_memory_cache_bytes", "Size of this worker's copies of memories.", registry=registry
        )

    def _add_worker(self) -> None:
        registry = self.registry
        self.model_load_seconds = Histogram(
            "sparke_model_load_seconds",
            "Time to load a model, by model.",
            ("model",),
            buckets=_LOAD_S,
            registry=registry,
        )
        self.worker_ready = Gauge(
            "sparke_worker_ready",
            "1 while this worker has loaded the model and takes jobs for it, else 0, by model.",
            ("model",),
            registry=registry,
        )
        self.store_errors = Counter(
            "sparke_store_errors",
            "Times that Redis or the object store did not answer, by store (redis, images or files).",
            ("store",),
            registry=registry,
        )

    def _add_files(self) -> None:
        registry = self.registry
        self.files_uploaded = Counter("sparke_files_uploaded", "Files taken.", registry=registry)
        self.files_deleted = Counter("sparke_files_deleted", "Files that clients deleted.", registry=registry)
        self.files_swept = Counter(
            "sparke_files_swept",
            "Objects that this process removed because no file names them: expired or left by a crash.",
            registry=registry,
        )
        self.file_bytes = Counter(
            "sparke_file_bytes",
            "Bytes of files, by direction: in (uploads that became files) or out (downloads).",
            ("direction",),
            registry=registry,
        )
        self.file_uploads_in_flight = Gauge(
            "sparke_file_uploads_in_flight", "Uploads that come in now.", registry=registry
        )

    def _add_batches(self) -> None:
        registry = self.registry
        self.batches_open = Gauge(
            "sparke_batches_open", "Batches of all tenants that have not ended.", registry=registry
        )
        self.batches_ended = Counter(
            "sparke_batches_ended",
            "Batches that this process brought to their end, by the state they ended in.",
            ("state",),
            registry=registry,
        )
        self.batch_lines = Counter(
            "sparke_batch_lines",
            "Lines of batches that were jobs and ended while this process drove them, by outcome: completed or failed.",
            ("outcome",),
            registry=registry,
        )

    def _add_webhooks(self) -> None:
        registry = self.registry
        self.webhook_deliveries = Counter(
            "sparke_webhook_deliveries",
            "Attempts to tell a webhook of an event, and events given up, by outcome.",
            ("outcome",),
            registry=registry,
        )
        self.webhooks_waiting = Gauge(
            "sparke_webhooks_waiting",
            "Events not yet delivered, one for each webhook, of the tenants that this process sees to.",
            registry=registry,
        )
        self.webhooks_oldest_seconds = Gauge(
            "sparke_webhooks_oldest_seconds",
            "Age of the oldest of them; 0 where there is none.",
            registry=registry,
        )
