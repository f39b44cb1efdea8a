"""What a guide sees of a step, and what it may do there: the two sides of the seam."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from sparke_engine.diffusion.moves import Move
from sparke_engine.diffusion.recording import Number, Ready
from sparke_engine.diffusion.schedulers import NoiseLevel

OnStep = Callable[[int, int], None]


class Start(NamedTuple):
    """The noise ratio that a run starts at, and that of the scheduler's first timestep."""

    ratio: float
    first_ratio: float


class Step:
    """One call of `scheduler.step`: `index` of `num_steps`, its latents, and what it predicts, computed when read.

    Where a scheduler takes several calls for a step, each has `share` of it and has the step's index.
    `start` is where a run began that left the first timesteps out; None where it left out none.
    `numbers` are those of `RecordableGuide.ready` where the step is recorded, None elsewhere.
    """

    def __init__(  # noqa: PLR0913 - what a step is seen of, each part read on its own
        self,
        index: int,
        num_steps: int,
        predict: Callable[[], Tensor],
        predict_prompted: Callable[[], Tensor] | None = None,
        *,
        sample: Tensor | None = None,
        guidance_scale: float | Callable[[], Tensor] = 1.0,
        share: float = 1.0,
        noise: Callable[[], NoiseLevel] | None = None,
        numbers: Sequence[Number] | None = None,
        start: Start | None = None,
    ) -> None:
        self.index = index
        self.num_steps = num_steps
        self.share = share
        self.start = start
        self.numbers = numbers
        self._sample = sample
        self._predict = predict
        self._predict_prompted = predict_prompted
        self._guidance_scale = guidance_scale
        self._noise = noise

    @property
    def extrapolates(self) -> bool:
        """Whether the model's output was made from more than one prediction, as classifier-free guidance does."""
        return self._predict_prompted is not None

    @functools.cached_property
    def guidance_scale(self) -> Float[Tensor, " b"]:
        """The scale by which guidance extrapolates each image; 1 where there is none, or it is no plain extrapolation."""
        if self.extrapolates and callable(self._guidance_scale):
            return self._guidance_scale()
        scale = self._guidance_scale if self.extrapolates and not callable(self._guidance_scale) else 1.0
        return self.clean.new_full(self.clean.shape[:1], scale)

    @functools.cached_property
    def noise(self) -> NoiseLevel:
        """How noisy the latents are that the step starts from; not at all where nothing tells."""
        return NoiseLevel(1.0, 0.0) if self._noise is None else self._noise()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the canonical latents."""
        height, width = (self.clean if self._sample is None else self._sample).shape[-2:]
        return height, width

    @functools.cached_property
    def noisy(self) -> Float[Tensor, "b c h w"]:
        """The latents that the step starts from, in fp32, scaled as the scheduler keeps them."""
        return self.clean if self._sample is None else self._sample.float()

    @functools.cached_property
    def clean(self) -> Float[Tensor, "b c h w"]:
        """x̂0 in fp32, before any push."""
        return self._predict()

    @functools.cached_property
    def prompted(self) -> Float[Tensor, "b c h w"]:
        """x̂0 in fp32 under the prompt alone, without the extrapolation of classifier-free guidance.

        `clean` where there is no such guidance, or where its halves cannot be told.
        """
        return self.clean if self._predict_prompted is None else self._predict_prompted()


Observer = Callable[[Step], None]


@runtime_checkable
class Guide(Protocol):
    """What decides the pushes, asked in this order in every step. All latents that it sees and gives are fp32.

    Where a scheduler takes several calls for a step, `before` is asked in each, and gives pushes of the full size: what a
    solver makes of both ends of a step must agree, or it takes half of the push back.
    """

    def displace(self, step: Step) -> list[Move]:
        """Moves of the noisy latents that the step starts from; the model's output stays that of the old place."""

    def before(self, step: Step) -> list[Move]:
        """Moves of the predicted clean latents."""

    def after(self, step: Step, latents: Float[Tensor, "b c h w"]) -> list[Move]:
        """Moves of the noisy latents that the step made."""

    def finish(self, latents: Float[Tensor, "b c h w"], num_steps: int) -> None:
        """Take the final latents of a run; of one that stops with noise left, its last predicted clean latents."""


@runtime_checkable
class RecordableGuide(Guide, Protocol):
    """A guide whose `before` can be recorded: nothing that is on the device decides what it does, see `recording`."""

    def ready(self, step: Step) -> Ready | None:
        """Bring what `before` reads to the device, and say what it depends on besides this step's tensors.

        The numbers come back as `step.numbers`. None where it does nothing, or cannot be recorded.
        """
