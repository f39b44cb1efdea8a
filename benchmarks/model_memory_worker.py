"""A process of `model_memory.py`: saves a model of random weights, or loads one as a worker does and makes images with it.

Its one argument is a JSON object. On standard output it says in lines of JSON which phase begins, and what was found of it.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from resident import resident_bytes
from torch import nn
from transformers import PreTrainedModel

from app.domain.ids import LatentSpace, ModelId
from app.domain.model import ModelSpec, SizeLimits
from app.worker import main as _worker  # noqa: F401 - a worker holds its code too
from app.worker.model.models import load_spec
from sparke_engine.diffusion.engine import DenoisingPlan, ImageEngine, PipelineEngine, SampleGroup
from sparke_engine.diffusion.library import default_preset
from sparke_engine.diffusion.pipelines import DTYPES, load_pipeline
from sparke_engine.diffusion.timing import RunTimes

WEIGHT = 0.02  # at most so far from 0: half precision holds whatever comes of it
PROMPT = "a doctor"


def main() -> None:
    """Does what it is told."""
    asked = json.loads(sys.argv[1])
    if asked["do"] == "save":
        _tell({"phase": "save"})
        _tell({"found": save(asked)})
    else:
        _Measured(asked).run()
    _tell({"phase": "end"})


def save(asked: dict[str, Any]) -> dict[str, Any]:
    """The model's folder in diffusers' format, with the weights in shards of 10 GB as the hub has them."""
    from model_shapes import FAMILIES, num_parameters  # noqa: PLC0415 - whoever measures does without the tests' code

    family, folder = FAMILIES[asked["family"]], Path(asked["folder"])
    pipe = family.tiny() if asked["tiny"] else family.make()
    counts = num_parameters(pipe)
    start_s = time.perf_counter()
    for name in counts:
        fill(getattr(pipe, name), DTYPES[asked["stored"]], asked["device"])
    filled_s = time.perf_counter() - start_s
    partial = folder.with_suffix(".partial")
    pipe.save_pretrained(partial, safe_serialization=True, max_shard_size="10GB")
    partial.rename(folder)
    return {
        "parameters": counts,
        "filled_s": filled_s,
        "saved_s": time.perf_counter() - start_s - filled_s,
        "stored_bytes": sum(path.stat().st_size for path in folder.rglob("*.safetensors")),
    }


@torch.no_grad()
def fill(part: nn.Module, dtype: torch.dtype, device: str) -> None:
    """Random weights on a device, where there were none or others."""
    part.to(dtype).to_empty(device=device)
    if isinstance(part, PreTrainedModel):
        part.tie_weights()  # each name got memory of its own
    for weights in part.state_dict().values():
        if weights.is_floating_point():
            weights.uniform_(-WEIGHT, WEIGHT)


@dataclass
class _Listener:
    """Keeps the times of batches."""

    times: list[RunTimes] = field(default_factory=list)

    def embedded(self, *, is_known: bool) -> None:
        """Nothing of it is kept."""

    def finished(self, times: RunTimes) -> None:
        """The batch has its images."""
        self.times.append(times)

    def last(self) -> dict[str, float]:
        """Of the last batch, a step in the mean and what came after the last one."""
        steps_s = self.times[-1].steps_s
        return {"step_s": sum(steps_s) / max(1, len(steps_s)), "decode_s": self.times[-1].decode_s}


class _Measured:
    """One start of a worker's model: phase by phase its time, and what the device holds."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked, self._device = asked, str(asked["device"])

    def run(self) -> None:
        """All phases. Without images only the load is measured."""
        self._phase("libraries", _load_libraries)
        self._phase("device", lambda: torch.zeros(1, device=self._device))
        engine = self._phase("load", self._load)
        listener = engine.listener = _Listener()
        if self._asked["images"]:
            self._phase("warm-up", partial(self._generate, engine, 1, 2))
        for images in self._asked["images"]:
            work = partial(self._generate, engine, images, self._asked["steps"])
            self._phase(f"images: {images}", work, listener.last)

    def _phase(
        self, name: str, work: Callable[[], Any], more: Callable[[], dict[str, Any]] = dict[str, Any]
    ) -> Any:
        _tell({"phase": name})
        if _is_on_cuda():
            torch.cuda.reset_peak_memory_stats()
        start_s = time.perf_counter()
        made = work()
        if _is_on_cuda():
            torch.cuda.synchronize()
        found = {"phase": name, "seconds": time.perf_counter() - start_s, "host": resident_bytes("self")}
        if _is_on_cuda():
            found |= _on_device()
        _tell({"found": found | more()})
        return made

    def _load(self) -> ImageEngine:
        """As a worker does, but for the rivals: see `model_memory`."""
        asked = self._asked
        if asked["way"] != "host":
            engine = load_spec(_spec(asked), self._device)
            if isinstance(engine, PipelineEngine) and asked["way"] == "together":
                engine.alone_px = sys.maxsize
            return engine
        pipe = load_pipeline(asked["folder"], dtype=DTYPES[asked["dtype"]])
        return PipelineEngine(pipe.to(self._device), default_preset(pipe))

    def _generate(self, engine: ImageEngine, images: int, steps: int) -> None:
        side_px = self._asked["side_px"]
        plan = DenoisingPlan(side_px, side_px, steps, self._asked["guidance_scale"])
        group = SampleGroup(PROMPT, "", tuple(range(images)), 0.5, None)
        (samples,) = engine.generate([group], plan, lambda _step, _num_steps: None)
        if len(samples) != images:
            raise RuntimeError(f"asked for {images} images, got {len(samples)}")


def _spec(asked: dict[str, Any]) -> ModelSpec:
    side_px, name = asked["side_px"], asked["family"]
    size = SizeLimits(side_px, side_px, side_px, side_px, 1)
    return ModelSpec(ModelId(name), asked["folder"], LatentSpace(name), size, dtype=asked["dtype"])


def _load_libraries() -> None:
    """What `load_spec` would load first: its time is that of the machine's disk and none of the model's."""
    from diffusers import DiffusionPipeline  # noqa: F401, PLC0415
    from transformers import CLIPTextModel, T5EncoderModel  # noqa: F401, PLC0415


def _is_on_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _on_device() -> dict[str, int]:
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return {
        "held_bytes": torch.cuda.memory_allocated(),
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "used_bytes": total_bytes - free_bytes,
    }


def _tell(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
