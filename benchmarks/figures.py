"""Figures of an arm of the demo benchmarks, prompt by prompt, and their 95 % intervals by bootstrap over prompts."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from demo_arms import Outcome
from demo_prompts import Prompts
from scipy.stats import bootstrap
from torch import Tensor

from sparke_engine.core.kernels import CosineKernel, GaussianKernel
from sparke_engine.core.scores import cond_rke, cond_vendi, vendi
from sparke_engine.demo.evaluate import is_right, judge_pictures, open_entropy_bits
from sparke_engine.demo.networks import Judge
from sparke_engine.demo.render import render
from sparke_engine.demo.scene import sample_scenes
from sparke_engine.scores import precision

PROMPTS_A_BLOCK = 4
RESAMPLES = 2000


@dataclass(frozen=True)
class Figures:
    """One value a prompt: float64 [p] each; nan where a prompt leaves nothing open."""

    accuracy: Tensor
    vendi: Tensor
    colour_bits: Tensor
    background_bits: Tensor
    push: Tensor


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def text(self, form: str, *, factor: float = 1.0) -> str:
        """`value [low, high]`, each in `form`."""
        value, low, high = (format(factor * part, form) for part in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def figures(outcome: Outcome, prompts: Prompts) -> Figures:
    """The figures of an arm, prompt by prompt."""
    rows: list[tuple[float, ...]] = []
    for seen, judged, pushes, stated in zip(
        outcome.attributes, outcome.judged, outcome.pushes, prompts.stated, strict=True
    ):
        said = stated.expand_as(seen)
        rows.append(
            (
                is_right(seen, said).double().mean().item(),
                vendi(judged, CosineKernel()),
                open_entropy_bits(seen, said, 1),
                open_entropy_bits(seen, said, 2),
                pushes.double().mean().item(),
            )
        )
    return Figures(*torch.tensor(rows, dtype=torch.float64).T)


def conditional_rke(outcome: Outcome, embeddings: Tensor) -> float:
    """Cond-RKE of the judge's features given the prompts, over a fixed sample of 16 images a prompt."""
    judged = torch.nn.functional.normalize(outcome.judged[:, :16].flatten(0, 1).double(), dim=1)
    prompts = embeddings.double().repeat_interleave(min(16, outcome.judged.shape[1]), dim=0)
    return cond_rke(judged, prompts, (GaussianKernel(0.5), GaussianKernel(0.3)))


def conditional_vendi(outcome: Outcome, embeddings: Tensor) -> Tensor:
    """Cond-Vendi of the judge's features given the prompts, float64: one a block of `PROMPTS_A_BLOCK` prompts.

    Blocks are stretched over the list of prompts, so that each has prompts of several kinds.
    """
    num_blocks = max(1, len(embeddings) // PROMPTS_A_BLOCK)
    kernels, scores = (CosineKernel(), GaussianKernel(0.3)), []
    for block in range(num_blocks):
        judged = outcome.judged[block::num_blocks]
        prompts = embeddings[block::num_blocks].repeat_interleave(judged.shape[1], dim=0)
        scores.append(cond_vendi(judged.flatten(0, 1), prompts, kernels))
    return torch.tensor(scores, dtype=torch.float64)


def data_outcome(prompts: Prompts, images_a_prompt: int, judge: Judge) -> Outcome:
    """Renders in place of generated images: what the training data itself holds for each prompt."""
    stated = prompts.stated.repeat_interleave(images_a_prompt, dim=0)
    pictures = render(sample_scenes(stated, torch.Generator().manual_seed(3)))
    verdict = judge_pictures(judge, pictures)
    shape = (len(prompts.texts), images_a_prompt, -1)
    empty = torch.zeros(shape[:2])
    return Outcome(
        verdict.attributes.reshape(shape), verdict.features.reshape(shape), empty[..., None], empty
    )


def precision_of(outcome: Outcome, data: Outcome) -> Tensor:
    """Share of an arm's images whose judge's features lie where the data of the same prompt does, float64 [p].

    Precision with 5 neighbours. Low for artefacts and for what the prompt does not say; also for rare, right images.
    """
    pairs = zip(outcome.judged, data.judged, strict=True)
    return torch.tensor(
        [precision(own, known, num_neighbours=5) for own, known in pairs], dtype=torch.float64
    )


def mean_of(values: Tensor) -> Interval:
    """The mean over prompts."""
    return _interval(values.numpy(), None, ratio=False)


def difference(own: Tensor, other: Tensor) -> Interval:
    """The difference of the means over prompts, in pairs."""
    return _interval(own.numpy(), other.numpy(), ratio=False)


def ratio(own: Tensor, other: Tensor) -> Interval:
    """The ratio of the means over prompts, in pairs."""
    return _interval(own.numpy(), other.numpy(), ratio=True)


def _interval(values: np.ndarray, against: np.ndarray | None, *, ratio: bool) -> Interval:
    def statistic(own: np.ndarray, other: np.ndarray | None = None, axis: int = -1) -> np.ndarray:
        if other is None:
            return np.asarray(own.mean(axis))
        gap = own.mean(axis) / other.mean(axis) if ratio else own.mean(axis) - other.mean(axis)
        return np.asarray(gap)

    data = (values,) if against is None else (values, against)
    if len(values) < 2 or (np.ptp(values) == 0 and (against is None or np.ptp(against) == 0)):
        point = float(statistic(*data))
        return Interval(point, point, point)
    found = bootstrap(
        data, partial(statistic), paired=True, n_resamples=RESAMPLES, rng=0, method="percentile"
    )
    low, high = found.confidence_interval
    return Interval(float(statistic(*data)), float(low), float(high))
