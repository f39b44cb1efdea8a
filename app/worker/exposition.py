"""What a worker tells of itself to Prometheus: what it is, and what its device has in use. `port.py` serves it."""

import math
from collections.abc import Sequence
from importlib.metadata import version

import torch

from app.telemetry.metrics import Metrics


def begin_metrics(metrics: Metrics, models: Sequence[str], device: str) -> None:
    """Says what this worker is, and begins with what is known beforehand: no model is ready, nothing was counted.

    `device` is torch's name of it. The memory of one that has its own is read when it is scraped.
    """
    metrics.begin(models)
    set_ready(metrics, models, 0)
    told = (version("sparke"), "worker", torch.__version__, version("diffusers"), _name_of(device))
    metrics.build_info.labels(*told).set(1)
    if torch.device(device).type == "cuda":
        _watch_memory(metrics, torch.device(device))


def set_ready(metrics: Metrics, models: Sequence[str], ready: int) -> None:
    """Says of all models whether this worker takes jobs for them: 1 or 0."""
    for model in models:
        metrics.worker_ready.labels(model).set(ready)


def _name_of(device: str) -> str:
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


def _watch_memory(metrics: Metrics, device: torch.device) -> None:
    has_index = ":" in str(device)
    index = device.index if has_index else torch.cuda.current_device()
    label = f"cuda:{index}"

    def used_bytes() -> float:
        try:
            free_bytes, total_bytes = torch.cuda.mem_get_info(index)
        except RuntimeError:
            return math.nan  # the device is lost: all else is told the more
        return total_bytes - free_bytes

    metrics.device_memory_used_bytes.labels(label).set_function(used_bytes)
    metrics.device_memory_total_bytes.labels(label).set(torch.cuda.mem_get_info(index)[1])
