"""Synthetic memories for `memory_scale.py` and `memory_search.py`: entries as SDXL's, prompts clustered like real ones."""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from app.domain.request import Diversity
from app.worker.memory.host_memory import Chosen, HostMemory, HostRows
from app.worker.memory.neighbours import neighbour_query
from sparke_engine.guidance.presets import preset_named

FEATURE, PROMPT = 1024, 512
SUBJECTS, WORDINGS = 2000, 10
SHARE_OF_ONE = 0.05  # of all entries one single prompt has so many
SHARE_OF_OWN = 0.5  # and so many a prompt that nobody else has
KNOWN_SPREAD, OWN_SPREAD = 0.25, 0.6  # how far a wording lies from its subject, in norms
BLOCK = 4096
Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Prompts:
    """What is asked for: subjects of Zipf's popularity, wordings of each that come again, and wordings of their own.

    `common` is the cosine that unrelated subjects have: text encoders give them one between 0 and about a half.
    """

    subjects: Rows
    known: Rows
    popularity: NDArray[np.float64]
    likeness: Rows

    @classmethod
    def drawn(cls, generator: np.random.Generator, *, common: float = 0.0) -> Self:
        """Subjects, and what images of a subject have in common."""
        own = unit(generator.standard_normal((SUBJECTS, PROMPT), np.float32))
        shared = unit(generator.standard_normal((1, PROMPT), np.float32))
        subjects = unit(np.sqrt(1 - common) * own + np.sqrt(common) * shared)
        noise = unit(generator.standard_normal((SUBJECTS * WORDINGS, PROMPT), np.float32))
        popularity = 1 / np.arange(1, SUBJECTS + 1)
        return cls(
            subjects,
            unit(np.repeat(subjects, WORDINGS, axis=0) + KNOWN_SPREAD * noise),
            popularity / popularity.sum(),
            generator.standard_normal((SUBJECTS, FEATURE), np.float32),
        )

    def asked(self, number: int, generator: np.random.Generator, *, own: float = SHARE_OF_OWN) -> "Asked":
        """As many requests: the one prompt, known wordings and own ones."""
        subjects = generator.choice(SUBJECTS, number, p=self.popularity)
        kind = generator.random(number)
        rows = self.known[subjects * WORDINGS + generator.integers(WORDINGS, size=number)]
        is_own = kind < own
        noise = unit(generator.standard_normal((int(is_own.sum()), PROMPT), np.float32))
        rows[is_own] = unit(self.subjects[subjects[is_own]] + OWN_SPREAD * noise)
        if own < 1.0:
            is_one = kind > 1 - SHARE_OF_ONE
            rows[is_one], subjects[is_one] = self.one, SUBJECTS - 1
        return Asked(subjects, rows)

    @property
    def one(self) -> Rows:
        """The prompt that has a twentieth of all entries: of a subject that is rare else."""
        return np.asarray(self.known[-1], np.float32)


@dataclass(frozen=True)
class Asked:
    """Subjects and prompt embeddings of some requests."""

    subjects: NDArray[np.int64]
    embeddings: Rows


@dataclass
class Report:
    """All figures, by name, with the machine's."""

    where: str
    figures: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def begin(cls, device: str = "") -> Self:
        """Says where it runs."""
        report = cls(
            f"{platform.node()}, {torch.get_num_threads()} CPU threads{device}, torch {torch.__version__}"
        )
        print(f"{report.where}\n\n| | |\n|---|---|", flush=True)
        return report

    def tell(self, name: str, value: float | str) -> None:
        """Prints a figure, and keeps it."""
        self.figures[name] = value
        print(f"| {name} | {value if isinstance(value, str) else format(value, ',.4g')} |", flush=True)

    def tell_load(self) -> None:
        """How many processes wanted the cores within the last minute, this one included."""
        self.tell("load average of the last minute", os.getloadavg()[0])

    def quantiles_ms(self, name: str, seconds: list[float]) -> None:
        """The median and the 99th percentile."""
        p50, p99 = (1000 * float(np.quantile(seconds, share)) for share in (0.5, 0.99))
        self.tell(f"{name}, p50 and p99, ms", f"{p50:.1f}, {p99:.1f}")


def unit(rows: NDArray[Any]) -> Rows:
    """Rows at unit norm."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def drawn_rows(
    prompts: Prompts, number: int, generator: np.random.Generator, *, own: float = SHARE_OF_OWN
) -> Iterator[HostRows]:
    """Entries of the versions 1 to `number`, in blocks."""
    for start in range(0, number, BLOCK):
        size = min(BLOCK, number - start)
        asked = prompts.asked(size, generator, own=own)
        noise = generator.standard_normal((size, FEATURE), np.float32)
        yield HostRows(
            np.arange(start + 1, start + size + 1),
            generator.integers(2**63, size=size).astype(np.uint64),
            unit(noise + 2 * prompts.likeness[asked.subjects]).astype(np.float16),
            asked.embeddings.astype(np.float16),
        )


def chosen_of(memory: HostMemory, prompt: Rows, *, cap: int | None = None) -> Chosen:
    """What an image of the preset `sdxl` has as neighbours; by another cap where one is given."""
    rule = preset_named("sdxl")
    if cap is not None:
        rule = replace(rule, max_neighbours=cap)
    asked = torch.from_numpy(prompt)
    return memory.select(neighbour_query(rule, Diversity(strength=1.0), asked, version=2**53))


def direction_errors(memory: HostMemory, prompt: Rows, generator: np.random.Generator) -> list[float]:
    """‖D̂ − D‖/‖D‖, D by all that qualify and D̂ by the sample, for three latents; none where all are neighbours."""
    whole, sample = chosen_of(memory, prompt, cap=len(memory)), chosen_of(memory, prompt)
    if len(sample.versions) == len(whole.versions):
        return []
    errors = []
    for _ in range(3):
        own = unit(whole.features.mean(0)[None] + 0.5 * unit(generator.standard_normal((1, FEATURE))))[0]
        exact, estimated = (_direction(own, prompt, one) for one in (whole, sample))
        errors.append(float(np.linalg.norm(estimated - exact) / np.linalg.norm(exact)))
    return errors


def _direction(own: Rows, prompt: Rows, chosen: Chosen) -> NDArray[np.float64]:
    """(I − ffᵀ) Σ w_j (f_j − f) of the preset `sdxl`, in float64, in blocks."""
    preset = preset_named("sdxl")
    total, direction = 0.0, np.zeros(len(own))
    for start in range(0, len(chosen.versions), BLOCK):
        block = slice(start, start + BLOCK)
        features = chosen.features[block].astype(np.float64)
        asked = chosen.prompt_embeddings[block].astype(np.float64) @ prompt
        near = (features @ own - 1) / preset.latent_bandwidth**2
        weights = chosen.weights[block] * np.exp(
            preset.power * (near + (asked - 1) / preset.prompt_bandwidth**2)
        )
        direction += weights @ features
        total += float(weights.sum())
    direction -= total * own
    return np.asarray(direction - own * (direction @ own))
