"""Captions: every way in which the demo model's training data says what a scene shows.

The whole language is small enough to be listed: `caption_table` makes every caption once, so that training draws an
index and a text is tokenised and encoded a single time.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sparke_engine.demo.scene import BACKGROUNDS, COLOURS, OPEN, SHAPES, TEXTURES

# {thing} is the described object; {place} the background's name.
_WITH_PLACE: Final = (
    "{a_thing} on {place}",
    "a picture of {a_thing} on {place}",
    "{a_thing}, {place} background",
    "{place} with {a_thing}",
    "a photo of {a_thing} over {place}",
    "{thing}, {place}",
    "{a_thing} on the {place}",
    "{a_thing} against a {place} background",
    "on {place}, {a_thing}",
    "draw {a_thing} on {place}",
)
_WITHOUT_PLACE: Final = (
    "{a_thing}",
    "a picture of {a_thing}",
    "{thing}",
    "an image with {a_thing}",
    "a photo of {a_thing}",
    "one {thing}",
    "the {thing}",
    "draw {a_thing}",
)
EMPTY_SHARE: Final = 0.02  # besides the captions that training drops for classifier-free guidance
_SHAPE_WORDS: Final = {"circle": ("circle", "disc"), "moon": ("moon", "crescent")}
_TEXTURE_WORDS: Final = {"striped": ("striped",), "dotted": ("dotted", "spotted"), "plain": ("plain",)}
_OPEN_SHAPE_WORDS: Final = ("shape", "thing", "figure")


@dataclass(frozen=True, slots=True)
class CaptionTable:
    """Every caption of the language with what it states.

    Attributes:
        texts: n captions; the first is the empty one.
        stated: int64 [n,4], in the order of `scene.ATTRIBUTES`, `OPEN` where nothing is said.
        weight: float32 [n], how often training draws a caption; sums to one; zero for held-out ones.
    """

    texts: tuple[str, ...]
    stated: Tensor
    weight: Tensor

    @property
    def held_out(self) -> Tensor:
        """Indices of the captions that training never sees, int64 [m]."""
        return torch.nonzero(self.weight == 0)[:, 0]


def is_held_out(shape: int, colour: int, background: int) -> bool:
    """Whether training never states these three together: one in eight of the full triples."""
    return OPEN not in (shape, colour, background) and (3 * shape + 5 * colour + background) % 8 == 0


def describe(shape: int, colour: int, background: int, texture: int) -> tuple[str, ...]:
    """Every caption that states exactly these attributes."""
    noun = _OPEN_SHAPE_WORDS if shape == OPEN else _SHAPE_WORDS.get(SHAPES[shape], (SHAPES[shape],))
    adjective = ("",) if texture == OPEN else _TEXTURE_WORDS[TEXTURES[texture]]
    colour_word = "" if colour == OPEN else COLOURS[colour]
    templates = _WITHOUT_PLACE if background == OPEN else _WITH_PLACE
    place = "" if background == OPEN else BACKGROUNDS[background]
    captions = []
    for index, template in enumerate(templates):
        words = (adjective[index % len(adjective)], colour_word, noun[index % len(noun)])
        thing = " ".join(word for word in words if word)
        article = "an" if thing[0] in "aeiou" else "a"
        captions.append(template.format(thing=thing, a_thing=f"{article} {thing}", place=place))
    return tuple(captions)


def caption_table() -> CaptionTable:
    """The whole language. A draw states the shape 15 times in 16 and every other attribute half the time."""
    texts, stated, weight = [""], [(OPEN, OPEN, OPEN, OPEN)], [EMPTY_SHARE]
    combinations = [
        (shape, colour, background, texture)
        for shape in range(OPEN, len(SHAPES))
        for colour in range(OPEN, len(COLOURS))
        for background in range(OPEN, len(BACKGROUNDS))
        for texture in range(OPEN, len(TEXTURES))
    ]
    for combination in combinations:
        share = (1.0 - EMPTY_SHARE) * _chance(combination)
        if is_held_out(*combination[:3]):
            share = 0.0
        phrases = describe(*combination)
        texts.extend(phrases)
        stated.extend([combination] * len(phrases))
        weight.extend([share / len(phrases)] * len(phrases))
    weights = torch.tensor(weight, dtype=torch.float64)
    return CaptionTable(tuple(texts), torch.tensor(stated), (weights / weights.sum()).float())


def _chance(combination: tuple[int, int, int, int]) -> float:
    shape, colour, background, texture = combination
    chance = 1 / 16 if shape == OPEN else 15 / 16 / len(SHAPES)
    for value, choices in ((colour, COLOURS), (background, BACKGROUNDS), (texture, TEXTURES)):
        chance *= 0.5 if value == OPEN else 0.5 / len(choices)
    return chance
