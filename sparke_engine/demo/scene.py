"""The world of the demo model: attributes of a scene, and how often each occurs.

A scene is one object on a background. A caption states some of its attributes and leaves others open. What is stated
is uniform (a user asks for anything); what is open follows a skewed prior that depends on the shape, so that a model
under strong guidance falls onto the most frequent value: the collapse that diversity guidance is there to cure.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "moon")
COLOURS: Final = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
BACKGROUNDS: Final = ("snow", "night", "stone", "sand", "sea", "forest", "plum", "chocolate")
TEXTURES: Final = ("plain", "striped", "dotted")

ATTRIBUTES: Final = {"shape": SHAPES, "colour": COLOURS, "background": BACKGROUNDS, "texture": TEXTURES}
OPEN: Final = -1  # an attribute that a caption does not state

_EIGHT: Final = (0.42, 0.20, 0.12, 0.08, 0.06, 0.05, 0.04, 0.03)
_THREE: Final = (0.60, 0.25, 0.15)


@dataclass(frozen=True, slots=True)
class Scenes:
    """A batch of scenes. Attributes are int64 indices [b]; lengths are in pixels of a 64 px picture, angles in radians."""

    shape: Tensor
    colour: Tensor
    background: Tensor
    texture: Tensor
    radius_px: Tensor
    centre_px: Tensor  # [b,2]
    angle: Tensor
    texture_angle: Tensor
    texture_phase: Tensor  # [b,2]
    tint: Tensor  # [b,2,3], small deviations of the object's and the background's colour

    def attributes(self) -> Tensor:
        """The four named attributes, int64 [b,4], in the order of `ATTRIBUTES`."""
        return torch.stack([self.shape, self.colour, self.background, self.texture], dim=1)


def prior() -> dict[str, Tensor]:
    """p(value | shape) of colour [8,8], background [8,8] and texture [8,3]. Over all shapes, colours and backgrounds are uniform.

    The favourite value moves from shape to shape, so that the skew belongs to the shape and not to the value.
    """
    shapes = range(len(SHAPES))
    colour, background = torch.zeros(8, 8), torch.zeros(8, 8)
    texture = torch.zeros(8, 3)
    for shape in shapes:
        for rank, share in enumerate(_EIGHT):
            colour[shape, (shape + 3 * rank) % 8] = share
            background[shape, (5 * shape + 5 * rank + 2) % 8] = share
        for rank, share in enumerate(_THREE):
            texture[shape, (shape + rank) % 3] = share
    return {"colour": colour, "background": background, "texture": texture}


def sample_scenes(stated: Tensor, generator: torch.Generator) -> Scenes:
    """Scenes in which stated attributes are as stated and open ones follow the prior of their shape.

    Args:
        stated: int64 [b,4], `OPEN` where the caption leaves the attribute open; an open shape is uniform.
        generator: on the device of `stated`.
    """
    device, size = stated.device, stated.shape[0]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(size, *shape, generator=generator, device=device)

    any_shape = torch.randint(len(SHAPES), (size,), generator=generator, device=device)
    shape = torch.where(stated[:, 0] == OPEN, any_shape, stated[:, 0])
    values = [shape]
    for column, table in enumerate(prior().values(), start=1):
        drawn = torch.multinomial(table.to(device)[shape], 1, generator=generator)[:, 0]
        values.append(torch.where(stated[:, column] == OPEN, drawn, stated[:, column]))
    radius_px = 12.0 + 8.5 * uniform()
    reach_px = (31.0 - radius_px)[:, None]
    offset = torch.randn(size, 2, generator=generator, device=device).clamp(-2.0, 2.0) / 2.0
    return Scenes(
        shape=values[0],
        colour=values[1],
        background=values[2],
        texture=values[3],
        radius_px=radius_px,
        centre_px=32.0 + reach_px * offset,
        angle=2.0 * torch.pi * uniform(),
        texture_angle=torch.pi * uniform(),
        texture_phase=uniform(2),
        tint=0.08 * (uniform(2, 3) - 0.5),
    )
