"""Pictures as a beginning: image-to-image and inpainting by the stock pipelines that a model's own parts make up."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from sparke_engine.errors import InvalidArgument, InvalidPlan

EditKind = Literal["image", "mask"]


@dataclass(frozen=True)
class Picture:
    """What a group's images begin with: RGB of the plan's size, and where it is repainted.

    `mask`: mode L, of that size, 255 where the picture is repainted and 0 where it stays; None repaints all of it.
    """

    image: Image.Image
    mask: Image.Image | None = None

    @property
    def kind(self) -> EditKind:
        """What is done to it."""
        return "image" if self.mask is None else "mask"


@dataclass(frozen=True)
class EditPipelines:
    """The classes of diffusers that edit pictures with a family's parts; None where it has none."""

    image: str | None = None
    mask: str | None = None

    @property
    def kinds(self) -> frozenset[EditKind]:
        """What the family can do."""
        given: dict[EditKind, str | None] = {"image": self.image, "mask": self.mask}
        return frozenset(kind for kind, name in given.items() if name is not None)

    def make(self, pipe: Any, kind: EditKind) -> Any:
        """The pipeline of that kind, of the very parts of `pipe`: no weights are copied. InvalidArgument where there is none."""
        import diffusers  # noqa: PLC0415 - two seconds that the toy can do without

        name = self.image if kind == "image" else self.mask
        if name is None:
            raise InvalidArgument(f"a {type(pipe).__name__} has no pipeline for {_DEEDS[kind]}")
        maker = getattr(diffusers, name)
        parts = pipe.components
        taken = inspect.signature(maker.__init__).parameters
        settings = {
            setting: value
            for setting, value in pipe.config.items()
            if setting in taken and setting not in parts
        }
        made = maker(**{part: model for part, model in parts.items() if part in taken}, **settings)
        made.set_progress_bar_config(disable=True)
        return made


_DEEDS: dict[EditKind, str] = {"image": "image-to-image", "mask": "inpainting"}


def num_edit_steps(steps: int, strength: float) -> int:
    """How many of the steps an edit runs, as diffusers counts them; pipelines of flow models round up."""
    return min(int(steps * strength), steps)


def check_pictures(
    pictures: Sequence[Picture | None], size_px: tuple[int, int], steps: int, strength: float | None
) -> EditKind | None:
    """What a batch does to its groups' pictures; None where it has none.

    Raises InvalidArgument where groups differ in that, or a picture or mask has another form than the plan's; InvalidPlan
    where the strength is missing, out of bounds, or leaves no step to run.
    """
    kinds = {None if picture is None else picture.kind for picture in pictures}
    if len(kinds) > 1:
        raise InvalidArgument(
            "the groups of a batch all have a picture, with a mask or without, or none has one"
        )
    (kind,) = kinds
    if (kind is None) != (strength is None):
        raise InvalidPlan("a plan has an edit_strength where its groups have pictures, and only there")
    if kind is None or strength is None:
        return None
    if not 0 < strength <= 1 or num_edit_steps(steps, strength) < 1:
        raise InvalidPlan(
            f"an edit_strength is at most 1 and runs one step at least; {strength:g} of {steps} steps is"
            f" {num_edit_steps(steps, max(0.0, min(strength, 1.0)))}"
        )
    for picture in pictures:
        if picture is not None:
            _check_form(picture.image, "RGB", size_px)
            if picture.mask is not None:
                _check_form(picture.mask, "L", size_px)
    return kind


def picture_arguments(pipe: Any, pictures: Sequence[Picture], strength: float) -> dict[str, Any]:
    """What an edit's call has beside a text-to-image call's. One picture for each image of the batch."""
    given: dict[str, Any] = {"image": [picture.image for picture in pictures], "strength": strength}
    masks = [picture.mask for picture in pictures if picture.mask is not None]
    if masks:
        given["mask_image"] = [whole_cells(mask, pipe.vae_scale_factor) for mask in masks]
    return given


def taken_by(pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments without the size where the pipeline takes it from the picture."""
    known = inspect.signature(type(pipe).__call__).parameters
    return {
        name: value for name, value in arguments.items() if name in known or name not in {"width", "height"}
    }


def whole_cells(mask: Image.Image, cell_px: int) -> Image.Image:
    """The mask grown to whole cells of `cell_px`, such as one latent stands for; a mask of whole cells stays as it is.

    Pipelines look at one pixel of each cell, and would not see a thin stroke beside it.
    """
    cells = (math.ceil(mask.width / cell_px), math.ceil(mask.height / cell_px))
    touched = mask.reduce(cell_px).point(lambda mean: 255 if mean else 0)
    whole = touched.resize((cells[0] * cell_px, cells[1] * cell_px), Image.Resampling.NEAREST)
    return whole.crop((0, 0, mask.width, mask.height))


def put_back(picture: Picture | None, image: Image.Image) -> Image.Image:
    """The image with the picture's own pixels where the mask keeps them: an autoencoder changes all a little."""
    if picture is None or picture.mask is None:
        return image
    return Image.composite(image.convert("RGB"), picture.image, picture.mask)


def _check_form(image: Image.Image, mode: str, size_px: tuple[int, int]) -> None:
    if (image.mode, image.size) != (mode, size_px):
        raise InvalidArgument(
            f"expected a picture of mode {mode} and {size_px} px, got {image.mode}, {image.size}"
        )
