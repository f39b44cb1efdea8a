"""How many images a batch of one shape may have: learned from batches that the device had no room for. Pure.

After one of b images the cap is half of b, or what is known to fit where that is more; so a device that is much too small
costs a few split batches and no more. The way up is slow: after a while without such a batch the next one that fits raises
the cap by a quarter, and the while doubles whenever a batch within the cap was too large after all. What fits by itself is
news too: a job larger than the cap runs alone, and where it fits, so do batches of its size.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace

from app.domain.ids import LoraName, ModelId
from app.worker.loops.batcher import BatchKey

FIRST_WAIT_MS = 5 * 60_000
MAX_WAIT_MS = 2 * 60 * 60_000
MAX_SHAPES = 256


@dataclass(frozen=True, slots=True)
class BatchShape:
    """What a batch's need of device memory depends on beside its number of images. Guidance doubles the denoiser's batch."""

    model: ModelId
    width_px: int
    height_px: int
    is_guided: bool
    loras: tuple[LoraName, ...]

    @classmethod
    def of(cls, key: BatchKey) -> "BatchShape":
        """The shape of the batches of a key."""
        names = tuple(lora.name for lora in key.loras)
        return cls(key.model, key.width_px, key.height_px, key.guidance_scale > 1, names)

    def __str__(self) -> str:
        words = [f"{self.width_px}x{self.height_px}", *(["guided"] if self.is_guided else []), *self.loras]
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class _Learned:
    """A cap, the most images that fitted since, and when it may be raised: `wait_ms` after it was changed."""

    cap: int
    fits: int
    wait_ms: int
    raise_at_ms: int


class BatchCaps:
    """The learned caps of at most `max_shapes` shapes, those used last; all others have `max_images`."""

    def __init__(self, *, max_images: int, max_shapes: int = MAX_SHAPES) -> None:
        self.max_images = max_images
        self._max_shapes = max_shapes
        self._learned: OrderedDict[BatchShape, _Learned] = OrderedDict()

    def __len__(self) -> int:
        return len(self._learned)

    def cap_of(self, key: BatchKey) -> int:
        """The most images for the next batch of this key."""
        known = self._learned.get(BatchShape.of(key))
        return self.max_images if known is None else known.cap

    def least_of(self, model: ModelId) -> int:
        """The least cap of the model's shapes."""
        caps = (known.cap for shape, known in self._learned.items() if shape.model == model)
        return min(caps, default=self.max_images)

    def ran_out(self, key: BatchKey, num_images: int, now_ms: int) -> int:
        """Learn that the device had no room for so many; the cap now. Above the cap that is no news."""
        shape = BatchShape.of(key)
        known = self._learned.get(shape)
        if known is None:
            known = _Learned(max(self.max_images, num_images), 0, FIRST_WAIT_MS // 2, now_ms)
        if num_images > known.cap:
            return known.cap
        fits = known.fits if known.fits < num_images else 0
        cap = min(self.max_images, max(1, num_images // 2, fits))
        wait_ms = min(2 * known.wait_ms, MAX_WAIT_MS)
        self._keep(shape, _Learned(cap, fits, wait_ms, now_ms + wait_ms))
        return cap

    def fitted(self, key: BatchKey, num_images: int, now_ms: int) -> int:
        """Learn that so many fitted; the cap now. A full batch that fits ends what was learned."""
        shape = BatchShape.of(key)
        known = self._learned.get(shape)
        if known is None:
            return self.max_images
        if num_images >= self.max_images:
            del self._learned[shape]
            return self.max_images
        cap, raise_at_ms = max(known.cap, num_images), known.raise_at_ms
        if now_ms >= raise_at_ms:
            cap, raise_at_ms = min(self.max_images, cap + max(1, cap // 4)), now_ms + known.wait_ms
        self._keep(shape, replace(known, cap=cap, fits=max(known.fits, num_images), raise_at_ms=raise_at_ms))
        return cap

    def _keep(self, shape: BatchShape, learned: _Learned) -> None:
        self._learned[shape] = learned
        self._learned.move_to_end(shape)
        if len(self._learned) > self._max_shapes:
            self._learned.popitem(last=False)
