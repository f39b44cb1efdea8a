"""Metrics of what workers do: batches on the device, models, images."""

from prometheus_client import Counter, Gauge, Histogram

from app.telemetry.metrics.declaring import BOTH, MODEL, WORKER, Declarations, Declared, Label

_STEP_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_BATCH_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280)
_PART_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LOAD_S = (0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640)
_BATCH_IMAGES = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128, 256)
_DEVICE = Label("device", about="a CUDA device of this worker such as `cuda:0`")


class DeviceMetrics(Declarations):
    """Batches and the device."""

    batch_images = Declared(
        Histogram,
        "Images in one device batch, by model; a batch that failed and its jobs' second runs alone among them.",
        process=WORKER,
        labels=(MODEL,),
        compare="With `sparke_batch_cap_images`: full batches under load are cheapest.",
        buckets=_BATCH_IMAGES,
    )
    batch_cap_images = Declared(
        Gauge,
        "Most images in a batch of this worker, the least over sizes and LoRAs, as learned from running out of memory, by model.",
        process=WORKER,
        labels=(MODEL,),
        compare="With `SPARKE_MAX_BATCH_IMAGES`: below it the device has run out of memory.",
    )
    batches_out_of_memory = Declared(
        Counter,
        "Batches that the device had no room for, by model; jobs that ran alone among them.",
        process=WORKER,
        labels=(MODEL,),
        compare="With 0 once the caps are learned; jobs that failed by it are `sparke_job_failures_total` of `out_of_memory`.",
    )
    batch_seconds = Declared(
        Histogram,
        "Time the device spent on one batch, prompts, guidance and decoding included, by model.",
        process=WORKER,
        labels=(MODEL,),
        compare="Its rate of seconds a second with 1: how busy the device is.",
        buckets=_BATCH_S,
    )
    denoise_step_seconds = Declared(
        Histogram,
        "Time from the end of one denoising step of a batch to the end of the next, guidance and previews included, by model; so "
        "a run's first is not in it. On CUDA between events on the device's own clock, else by the host's.",
        process=WORKER,
        labels=(MODEL,),
        compare="With itself before, at the same `sparke_batch_images`.",
        buckets=_STEP_S,
    )
    denoise_steps = Declared(
        Counter,
        "Denoising steps that are done, by model, told as they go; on CUDA up to some steps before the device has done them.",
        process=WORKER,
        labels=(MODEL,),
        compare="With `sparke_jobs_running`: of a worker that holds jobs it grows, however long a batch takes.",
    )
    guidance_seconds = Declared(
        Histogram,
        "Time of guidance in one batch, by model: what all its steps spend beyond the denoiser and the scheduler's own step. On "
        "CUDA between events on the device's own clock, so what the device waits for is in it, else by the host's; no step "
        "waits for the measurement.",
        process=WORKER,
        labels=(MODEL,),
        compare="With `sparke_batch_seconds`: a few hundredths of it.",
        buckets=_PART_S,
    )
    decode_seconds = Declared(
        Histogram,
        "Time from the last step of a batch to its finished images, by model: latents are decoded and copied to the host.",
        process=WORKER,
        labels=(MODEL,),
        compare="With `sparke_batch_seconds`.",
        buckets=_PART_S,
    )
    device_memory_used_bytes = Declared(
        Gauge,
        "Memory of the device that is in use, by all processes, what torch keeps for itself included. Absent without CUDA: "
        "there `process_resident_memory_bytes` tells of the host's.",
        process=WORKER,
        labels=(_DEVICE,),
        compare="With `sparke_device_memory_total_bytes`; near it is normal, `sparke_batches_out_of_memory_total` is not.",
    )
    device_memory_total_bytes = Declared(
        Gauge,
        "Memory that the device has. Absent without CUDA.",
        process=WORKER,
        labels=(_DEVICE,),
    )


class ImageMetrics(Declarations):
    """Images."""

    images = Declared(
        Counter,
        "Images made and committed, by model.",
        process=WORKER,
        labels=(MODEL,),
        compare="Its rate with what the hardware made at the last load test.",
    )
    images_expired = Declared(
        Counter,
        "Images that this worker removed because their time to live was over.",
        process=WORKER,
        compare="With `sparke_images_total` of `SPARKE_IMAGE_TTL_S` before.",
    )
    images_orphaned = Declared(
        Counter,
        "Images and pictures that this worker removed because their job had ended without them.",
        process=WORKER,
        compare="With `sparke_jobs_redelivered_total`: crashes and lost leases leave them.",
    )


class WorkerMetrics(Declarations):
    """Processes."""

    build_info = Declared(
        Gauge,
        "Always 1: what this process is. A worker tells of torch, diffusers and its device as well; an API process has those empty.",
        process=BOTH,
        labels=(
            Label("version", about="of SPARKE"),
            Label("component", ("api", "worker")),
            Label("torch", about="its version"),
            Label("diffusers", about="its version"),
            Label("device", about="its name, such as `NVIDIA H200` or `cpu`"),
        ),
        compare="Over all processes: one version, but for a rollout.",
    )
    model_load_seconds = Declared(
        Histogram,
        "Time to load a model, by model.",
        process=WORKER,
        labels=(MODEL,),
        compare="With the grace that probes give a worker to start.",
        buckets=_LOAD_S,
    )
    worker_ready = Declared(
        Gauge,
        "1 while this worker has loaded the model and takes jobs for it, else 0, by model. Add the workers up.",
        process=WORKER,
        labels=(MODEL,),
        compare="With the workers that there should be.",
    )
