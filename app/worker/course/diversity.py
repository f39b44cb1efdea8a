"""How diverse the last images of each model are, and what guidance gained: reckoned beside the work, never on its way.

What is kept of an image is its feature and its prompt's embedding, for an hour at most and in this process alone. What is
told is one number a model, over all tenants.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import structlog
import torch
from prometheus_client import Gauge
from torch import Tensor

from app.domain.ids import ModelId, TenantId
from app.telemetry.metrics import Metrics
from app.worker.memory.host_memory import Chosen
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.scores import CosineKernel, GaussianKernel, Kernel, cond_rke, similarity_gain

_log = structlog.get_logger(__name__)

WINDOW_IMAGES = 256
_WINDOW_BYTES = 16 * 2**20  # of features; whole latents are long, and there are fewer then
_MAX_AGE_S = 3600.0
_MAX_PENDING = 16  # jobs whose gain is reckoned at once; of more, the last ones
_MAX_ENTRIES = 256  # of a job's neighbours that its gain is reckoned from, evenly spaced
_MAX_ENTRY_BYTES = 16 * 2**20  # of their features: whole latents are long


@dataclass(frozen=True, slots=True, eq=False)
class MadeImages:
    """A job's images as they were committed: unit features `[n, d]`, their prompt's embedding `[p]`, and what was chosen to push them away from."""

    tenant_id: TenantId
    strength: float
    features: Tensor
    prompt_embedding: Tensor
    chosen: Chosen | None


@dataclass(frozen=True, slots=True, eq=False)
class _Image:
    tenant_id: TenantId
    at_s: float
    feature: Tensor
    prompt_embedding: Tensor


@dataclass(frozen=True, slots=True)
class _Gain:
    tenant_id: TenantId
    at_s: float
    value: float


@dataclass(slots=True)
class _Window:
    preset: DiversityPreset
    images: deque[_Image]
    gains: deque[_Gain] = field(default_factory=lambda: deque(maxlen=WINDOW_IMAGES))
    pending: deque[MadeImages] = field(default_factory=lambda: deque(maxlen=_MAX_PENDING))

    def keep(self, is_kept: Callable[[_Image | _Gain | MadeImages], bool]) -> None:
        """Drops what is not to be kept."""
        self.images = deque(filter(is_kept, self.images), self.images.maxlen)
        self.gains = deque(filter(is_kept, self.gains), self.gains.maxlen)
        self.pending = deque(filter(is_kept, self.pending), self.pending.maxlen)


@dataclass(frozen=True, slots=True)
class Diversity:
    """Cond-RKE of a window, and what it would be if no image resembled another."""

    score: float
    limit: float


class DiversityMeter:
    """Notes the images of jobs, which costs next to nothing, and reckons when it is asked to. On the event loop."""

    INTERVAL_S = 15.0

    def __init__(self, metrics: Metrics, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._clock_s = clock_s
        self._windows: dict[ModelId, _Window] = {}

    def note(self, model: ModelId, preset: DiversityPreset, made: MadeImages) -> None:
        """Takes committed images into the model's window. Without neighbours, or with one, there is no gain to tell of."""
        window = self._windows.get(model)
        if window is None:
            most = min(WINDOW_IMAGES, max(2, _WINDOW_BYTES // (2 * made.features.shape[1])))
            window = self._windows[model] = _Window(preset, deque(maxlen=most))
        now_s = self._clock_s()
        window.images.extend(
            _Image(made.tenant_id, now_s, feature.half(), made.prompt_embedding) for feature in made.features
        )
        if made.chosen is None or len(made.chosen.weights) < 2:
            return
        if made.strength == 0:
            window.gains.extend([_Gain(made.tenant_id, now_s, 0.0)] * len(made.features))
        else:
            window.pending.append(replace(made, chosen=_thinned(made.chosen)))

    def drop(self, tenant_ids: Collection[TenantId]) -> None:
        """Forgets what is of tenants that are being deleted."""
        for window in self._windows.values():
            window.keep(lambda one: one.tenant_id not in tenant_ids)

    async def measure(self) -> None:
        """Sets the gauges of every model, from what is at most an hour old. In a thread. What goes wrong is logged."""
        for model, window in list(self._windows.items()):  # a model's first images may come meanwhile
            try:
                await self._measure(model, window)
            except Exception:  # noqa: BLE001 - the worker has more to do than this
                _log.exception("diversity_not_measured", model=model)

    async def _measure(self, model: ModelId, window: _Window) -> None:
        oldest_s = self._clock_s() - _MAX_AGE_S
        window.keep(lambda one: isinstance(one, MadeImages) or one.at_s >= oldest_s)
        pending = list(window.pending)
        window.pending.clear()
        gained = await asyncio.to_thread(_gains_of, pending, window.preset)
        now_s = self._clock_s()
        window.gains.extend(_Gain(tenant_id, now_s, value) for tenant_id, value in gained)
        found = await asyncio.to_thread(diversity_of, list(window.images), window.preset)
        gains = [gain.value for gain in window.gains]
        self._tell(self._metrics.diversity_score, model, None if found is None else found.score)
        self._tell(self._metrics.diversity_score_limit, model, None if found is None else found.limit)
        self._tell(self._metrics.diversity_gain, model, sum(gains) / len(gains) if gains else None)

    def _tell(self, gauge: Gauge, model: ModelId, value: float | None) -> None:
        """Nothing is said where nothing is known."""
        if value is None:
            gauge.remove(model)
        else:
            gauge.labels(model).set(value)


def diversity_of(images: Sequence[_Image], preset: DiversityPreset) -> Diversity | None:
    """Of images whose features are as long as the last one's: latents of another size may have others. None without any."""
    alike = [image for image in images if len(image.feature) == len(images[-1].feature)]
    if not alike:
        return None
    features = torch.stack([image.feature for image in alike]).float()
    prompts = torch.stack([image.prompt_embedding for image in alike]).float()
    kernel, prompt_kernel = _kernels_of(preset)
    score = cond_rke(features, prompts, (kernel, prompt_kernel))
    gram = prompt_kernel.gram(prompts.double(), prompts.double())
    return Diversity(score, float(gram.square().sum()) / len(alike))


def gains_of(made: MadeImages, preset: DiversityPreset) -> list[float]:
    """What guidance gained, for each image of a job that was guided: see `similarity_gain`."""
    chosen = made.chosen
    if chosen is None or made.features.shape[1] != chosen.features.shape[1]:
        return []
    entries, weights = torch.from_numpy(chosen.features), torch.from_numpy(chosen.weights)
    kernel, prompt_kernel = _kernels_of(preset)
    if preset.conditional:
        known = torch.from_numpy(chosen.prompt_embeddings)
        weights = weights * prompt_kernel.gram(made.prompt_embedding.float()[None], known)[0].clamp_min(0)
    return [float(value) for value in similarity_gain(made.features.float(), entries, weights, kernel)]


def _thinned(chosen: Chosen) -> Chosen:
    """So many of the entries as a gain is reckoned from, copied: all of them may be gigabytes, and these wait."""
    most = min(_MAX_ENTRIES, max(2, _MAX_ENTRY_BYTES // chosen.features[0].nbytes))
    if len(chosen.weights) <= most:
        return chosen
    kept = slice(None, None, -(-len(chosen.weights) // most))
    return replace(
        chosen,
        features=chosen.features[kept].copy(),
        prompt_embeddings=chosen.prompt_embeddings[kept].copy(),
        versions=chosen.versions[kept].copy(),
        weights=chosen.weights[kept].copy(),
    )


def _gains_of(pending: Sequence[MadeImages], preset: DiversityPreset) -> list[tuple[TenantId, float]]:
    return [(made.tenant_id, value) for made in pending for value in gains_of(made, preset)]


def _kernels_of(preset: DiversityPreset) -> tuple[Kernel, Kernel]:
    if preset.kernel == "cosine":
        return CosineKernel(), CosineKernel()
    return GaussianKernel(preset.latent_bandwidth), GaussianKernel(preset.prompt_bandwidth)
