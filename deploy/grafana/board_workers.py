"""The dashboard workers: What does each worker do?"""

from panels import Board, Panel, Query, Row
from queries import INSTANCE, MODEL, WORKER, lately, mean, quantiles, rate

WORKERS = Board(
    "workers",
    "SPARKE: workers",
    "What each worker does: its batches, its device, its copies of memories.",
    (
        ("namespace", "sparke_build_info"),
        ("model", "sparke_worker_ready"),
        ("instance", "sparke_worker_ready"),
    ),
    (
        Row(
            "Now",
            (
                Panel(
                    "Ready",
                    "Workers that have the model loaded and take its jobs.",
                    "none",
                    [Query(f"sum(sparke_worker_ready{{{WORKER}}}) or vector(0)")],
                    "SparkeWorkersLost",
                    1,
                    is_low_bad=True,
                    kind="number",
                ),
                Panel(
                    "Images",
                    "Images made and committed, a second.",
                    "ops",
                    [Query(f"sum(rate(sparke_images_total{{{WORKER}}}[$__rate_interval])) or vector(0)")],
                    kind="number",
                ),
                Panel(
                    "A step against the day before",
                    "How much longer a denoising step takes than the day before, as a ratio.",
                    "none",
                    [
                        Query(
                            f"max(model:sparke_denoise_step_seconds:mean15m{{{MODEL}}} / avg_over_time(model:sparke_denoise_step_seconds:mean15m{{{MODEL}}}[1d] offset 1h))"
                        )
                    ],
                    "SparkeStepSlow",
                    kind="number",
                ),
            ),
        ),
        Row(
            "Load",
            (
                Panel(
                    "Device busy",
                    "Share of the time in which the device works on a batch.",
                    "percentunit",
                    [rate("sparke_batch_seconds_sum", "instance", WORKER)],
                ),
                Panel(
                    "Images",
                    "Images made and committed by each worker, a second.",
                    "ops",
                    [rate("sparke_images_total", "instance, model", WORKER)],
                ),
                Panel(
                    "Jobs held",
                    "Jobs that each worker holds a lease on now.",
                    "none",
                    [Query(f"sparke_jobs_running{{{WORKER}}}", "{{instance}} {{model}}")],
                ),
                Panel(
                    "Steps",
                    "Denoising steps by each worker, a second: none while jobs are held is a device that hangs.",
                    "ops",
                    [rate("sparke_denoise_steps_total", "instance, model", WORKER)],
                    "SparkeJobsStuck",
                    has_limit=False,
                ),
                Panel(
                    "Images in a batch",
                    "Mean number of images in a device batch.",
                    "none",
                    [mean("sparke_batch_images", "instance, model", WORKER)],
                ),
                Panel(
                    "Caps of batches",
                    "Most images in a batch, as learned from running out of memory.",
                    "none",
                    [Query(f"sparke_batch_cap_images{{{WORKER}}}", "{{instance}} {{model}}")],
                    "SparkeOutOfMemory",
                    1,
                    is_low_bad=True,
                ),
                Panel(
                    "Out of memory",
                    "Batches within half an hour that the device had no room for.",
                    "none",
                    [
                        Query(
                            f"sum by (instance, model) (increase(sparke_batches_out_of_memory_total{{{WORKER}}}[30m]))",
                            "{{instance}} {{model}}",
                        )
                    ],
                    "SparkeOutOfMemory",
                ),
            ),
        ),
        Row(
            "Time of a batch",
            (
                Panel(
                    "A batch",
                    "Time of one batch on the device, decoding included.",
                    "s",
                    quantiles("sparke_batch_seconds", "instance", WORKER),
                ),
                Panel(
                    "A denoising step",
                    "Time of one step of a batch, guidance included.",
                    "s",
                    quantiles("sparke_denoise_step_seconds", "instance", WORKER),
                ),
                Panel(
                    "An image",
                    "Device time of a batch by its images, over fifteen minutes.",
                    "s",
                    [Query(f"model:sparke_batch_seconds:an_image15m{{{MODEL}}}", "{{model}} {{namespace}}")],
                ),
                Panel(
                    "Guidance",
                    "Time of guidance in one batch, in all its steps.",
                    "s",
                    quantiles("sparke_guidance_seconds", "instance", WORKER),
                ),
                Panel(
                    "Share of guidance",
                    "Share of the device's time in batches that guidance takes.",
                    "percentunit",
                    [
                        Query(
                            f"sum by (instance) (rate(sparke_guidance_seconds_sum{{{WORKER}}}[$__rate_interval])) / sum by (instance) (rate(sparke_batch_seconds_sum{{{WORKER}}}[$__rate_interval]))",
                            "{{instance}}",
                        )
                    ],
                ),
                Panel(
                    "Decoding",
                    "Time from the last step of a batch to its finished images.",
                    "s",
                    quantiles("sparke_decode_seconds", "instance", WORKER),
                ),
            ),
        ),
        Row(
            "Device and process",
            (
                Panel(
                    "Device memory",
                    "Share of the device's memory in use; torch keeps what it has once needed.",
                    "percentunit",
                    [
                        Query(
                            f"sparke_device_memory_used_bytes{{{INSTANCE}}} / sparke_device_memory_total_bytes{{{INSTANCE}}}",
                            "{{instance}} {{device}}",
                        )
                    ],
                    "SparkeDeviceMemoryFull",
                ),
                Panel(
                    "Host memory",
                    "Resident memory of each worker's process.",
                    "bytes",
                    [
                        Query(
                            f'process_resident_memory_bytes{{job="sparke-worker",{INSTANCE}}}', "{{instance}}"
                        )
                    ],
                ),
                Panel(
                    "Scrapes answered",
                    "Share of the scrapes of ten minutes that each worker answered.",
                    "percentunit",
                    [Query(f'avg_over_time(up{{job="sparke-worker",{INSTANCE}}}[10m])', "{{instance}}")],
                    "SparkeTargetDown",
                    is_low_bad=True,
                ),
                Panel(
                    "Loading a model",
                    "Mean time of the loads within a day.",
                    "s",
                    [
                        Query(
                            f"sum by (instance, model) (sparke_model_load_seconds_sum{{{WORKER}}}) / sum by (instance, model) (sparke_model_load_seconds_count{{{WORKER}}})",
                            "{{instance}} {{model}}",
                        )
                    ],
                ),
                Panel(
                    "Software",
                    "What each worker is: version, torch, device.",
                    "none",
                    [
                        Query(
                            f'sparke_build_info{{component="worker",{INSTANCE}}}',
                            "{{instance}} {{version}}, torch {{torch}}, {{device}}",
                        )
                    ],
                ),
                Panel(
                    "Stores that did not answer",
                    "Calls of Redis and of the object store in vain by each worker, a second.",
                    "ops",
                    [rate("sparke_store_errors_total", "instance, store", f'job="sparke-worker",{INSTANCE}')],
                    "SparkeStoreAway",
                    0.1,
                ),
            ),
        ),
        Row(
            "Leases and commits",
            (
                Panel(
                    "Jobs given to others",
                    "Jobs within an hour that each worker took from a silent one.",
                    "none",
                    [lately("sparke_jobs_redelivered_total", "instance", WORKER)],
                    "SparkeJobsRedelivered",
                    1,
                ),
                Panel(
                    "Jobs lost to others",
                    "Jobs within an hour that each worker found to be another's, or ended.",
                    "none",
                    [lately("sparke_jobs_fence_lost_total", "instance", WORKER)],
                    "SparkeJobsRedelivered",
                    1,
                ),
                Panel(
                    "Commits that wrote nothing",
                    "Attempts within an hour to commit finished images in vain, by reason.",
                    "none",
                    [lately("sparke_commit_failures_total", "instance, reason", WORKER)],
                    "SparkeCommitFailures",
                    1,
                ),
            ),
        ),
        Row(
            "Memories and prompts",
            (
                Panel(
                    "Following memories",
                    "Time to bring a copy of a memory up to date before it is read.",
                    "s",
                    quantiles("sparke_memory_sync_seconds", "instance", INSTANCE),
                ),
                Panel(
                    "Searching memories",
                    "Time to find the neighbours of one request.",
                    "s",
                    quantiles("sparke_memory_search_seconds", "instance", INSTANCE),
                ),
                Panel(
                    "Copies of memories",
                    "Size of each worker's copies of memories.",
                    "bytes",
                    [Query(f"sparke_memory_cache_bytes{{{INSTANCE}}}", "{{instance}}")],
                ),
                Panel(
                    "What copies had",
                    "Readings of memories by what the worker had already, a second.",
                    "ops",
                    [rate("sparke_memory_cache_lookups_total", "outcome", INSTANCE)],
                ),
                Panel(
                    "Copies evicted",
                    "Copies within an hour that went to keep within SPARKE_MEMORY_CACHE_BYTES.",
                    "none",
                    [lately("sparke_memory_cache_evictions_total", "instance", INSTANCE)],
                ),
                Panel(
                    "Prompts known already",
                    "Share of the prompts whose embedding the worker still knew.",
                    "percentunit",
                    [
                        Query(
                            f'sum by (instance) (rate(sparke_prompt_embedding_lookups_total{{outcome="hit",{WORKER}}}[$__rate_interval])) / sum by (instance) (rate(sparke_prompt_embedding_lookups_total{{{WORKER}}}[$__rate_interval]))',
                            "{{instance}}",
                        )
                    ],
                ),
            ),
        ),
    ),
)
