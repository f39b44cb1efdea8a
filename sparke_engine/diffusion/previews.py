"""Pictures of what a run is about to make: x̂0 of some of its steps, decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from sparke_engine.errors import InvalidArgument

MAX_PREVIEWS = 10


@dataclass(frozen=True)
class Previews:
    """How many pictures a group wants of each of its images on the way, and who gets them.

    `show(number, images)` is called on the engine's thread, with the preview's number from 0 and one RGB picture for each
    seed. They come at even distances; a run of few steps has fewer. They change no image.
    """

    num_previews: int
    show: Callable[[int, Sequence[Image.Image]], None]

    def __post_init__(self) -> None:
        if not 0 <= self.num_previews <= MAX_PREVIEWS:
            raise InvalidArgument(f"a group wants 0 to {MAX_PREVIEWS} previews, got {self.num_previews}")

    def number_after(self, done: int, num_steps: int) -> int | None:
        """Which preview is due once `done` of `num_steps` steps are; None where none is, as after the last step."""
        steps = preview_steps(self.num_previews, num_steps)
        return steps.index(done) if done in steps else None


def preview_steps(num_previews: int, num_steps: int) -> list[int]:
    """After how many steps each preview is due: at even distances, each once, before the last step."""
    due = (round((number + 1) * num_steps / (num_previews + 1)) for number in range(num_previews))
    return sorted({step for step in due if 0 < step < num_steps})
