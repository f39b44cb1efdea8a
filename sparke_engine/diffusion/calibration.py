"""Calibration: a preset for a model of one's own, from a small sample of its images and no judge.

    engine = load_engine("path/to/model", device="cuda")
    found = calibrate(engine, [("a cat", "a small cat"), ("a house by the sea",)], CalibrationPlan(plan))
    found.preset

Bandwidths come from the sample that the model makes without guidance. Then images are made at strength 1 with several η,
and the model itself is asked how much of their prompts they still say: see `prompt_information` and docs/calibration.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparke_engine.core.domains import check_positive
from sparke_engine.core.kernels import GaussianKernel
from sparke_engine.core.scores import vendi
from sparke_engine.diffusion.engine import DenoisingPlan, ImageEngine, PipelineEngine, SampleGroup
from sparke_engine.diffusion.families import family_of
from sparke_engine.diffusion.forced import KeptRuns, method_of, restoration_errors
from sparke_engine.errors import InvalidArgument, UnsupportedPipeline
from sparke_engine.guidance.bandwidths import PromptBandwidth
from sparke_engine.guidance.calibration import (
    FullStrength,
    Trial,
    check_unguided,
    full_strength,
    latent_bandwidth_within,
    prompt_bandwidth_between,
    prompt_information,
)
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.memory_bank import MemoryBank

IMAGES_A_REQUEST = 4
LEVELS = 8
NOISE_SEED = 2**31  # of restorations: apart from the images' own seeds
OnTrial = Callable[[int, int], None]


@dataclass(frozen=True)
class CalibrationPlan:
    """How a calibration makes its images.

    Attributes:
        plan: size, steps and guidance scale, as the model is to be used.
        images: of each prompt, at least 2; requests of 4 of them, each of which remembers those before.
        first_seed: the seed of the first image; prompts have seeds of their own, which are the same in every trial.
        eta_factors: the η that are tried, in multiples of the preset's.
        keep: the share of the information on its prompt that an image keeps at strength 1.
        batch_images: most images at a time on the device.
    """

    plan: DenoisingPlan
    images: int = 8
    first_seed: int = 0
    eta_factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    keep: float = 0.6
    batch_images: int = 16

    def __post_init__(self) -> None:
        if self.images < 2:
            raise InvalidArgument(f"a calibration needs 2 images of each prompt or more, got {self.images}")
        if not 0 <= self.first_seed < NOISE_SEED:
            raise InvalidArgument(f"a calibration's seed is in 0..{NOISE_SEED - 1}, got {self.first_seed}")
        if not self.eta_factors:
            raise InvalidArgument("a calibration needs one factor of η at least, got none")
        for factor in self.eta_factors:
            check_positive("a calibration", eta_factor=factor)
        if not 0 < self.keep < 1:
            raise InvalidArgument(f"the share that is kept is between 0 and 1, got {self.keep}")
        if self.batch_images < 1:
            raise InvalidArgument(f"a batch has one image at least, got {self.batch_images}")


@dataclass(frozen=True)
class Calibration:
    """A preset and the measurements that it follows from; `trials` begin with the one without guidance."""

    preset: DiversityPreset
    prompt_bandwidth: PromptBandwidth
    trials: tuple[Trial, ...]
    strength: FullStrength


def calibrate(
    engine: ImageEngine,
    scenes: Sequence[str | Sequence[str]],
    plan: CalibrationPlan,
    on_trial: OnTrial | None = None,
) -> Calibration:
    """The engine's preset with bandwidths and η of its model. The engine is as before, whatever happens.

    `scenes` are prompts, those of one scene together, a single one as it is or in a list; two scenes at least; images are made of each scene's first prompt.
    Where every scene has one prompt, only equal prompts count as related. `on_trial(done, total)` is called after each.
    (1 + number of factors) · scenes · images images are made; asking the model takes less time than that again.
    Raises InvalidArgument for what no preset follows from, UnsupportedPipeline for an engine without a denoiser, and what
    `generate` raises.
    """
    if not isinstance(engine, PipelineEngine):
        raise UnsupportedPipeline(
            f"a calibration asks a model's denoiser, and {type(engine).__name__} has none"
        )
    texts = [[scene] if isinstance(scene, str) else list(scene) for scene in scenes]
    if isinstance(scenes, str) or len(texts) < 2 or not all(texts):
        raise InvalidArgument(f"a calibration needs two scenes of one prompt or more, got {texts}")
    before = engine.preset
    for factor in plan.eta_factors:
        check_positive("a calibration", **{f"eta of factor {factor:g}": factor * before.eta})
    try:
        return _calibrate(engine, texts, plan, on_trial)
    finally:
        engine.preset = before


def _calibrate(
    engine: PipelineEngine, scenes: list[list[str]], plan: CalibrationPlan, on_trial: OnTrial | None
) -> Calibration:
    base, prompts = engine.preset, tuple(scene[0] for scene in scenes)
    embeddings = engine.embed_prompts([text for scene in scenes for text in scene])
    numbers = torch.tensor([number for number, scene in enumerate(scenes) for _ in scene])
    prompt_bandwidth = prompt_bandwidth_between(embeddings, numbers, power=base.power)
    sampler = _Sampler(engine, prompts, plan)
    made = sampler.make(base, strength=0.0)
    latent_bandwidth = latent_bandwidth_within(made.features, made.prompts)
    preset = base.with_bandwidths(latent_bandwidth, prompt_bandwidth.bandwidth)
    trials, tried = list[Trial](), preset
    for factor in (0.0, *sorted(plan.eta_factors)):
        if factor > 0:
            tried = _with_eta(preset, factor * base.eta)
            made = sampler.make(tried, strength=1.0)
        trials.append(sampler.trial(made, tried, eta=factor * base.eta))
        if on_trial is not None:
            on_trial(len(trials), 1 + len(plan.eta_factors))
        check_unguided(trials[0])
    strength = full_strength(trials, keep=plan.keep)
    return Calibration(_with_eta(preset, strength.eta), prompt_bandwidth, tuple(trials), strength)


def asking_plan(engine: PipelineEngine, plan: DenoisingPlan) -> DenoisingPlan:
    """How a model is asked: at 8 levels of noise or as many as it has steps, and without extrapolation.

    Where the scale of guidance is an input of a distilled model, its predictions are what they are at that scale, and it
    stays.
    """
    call = family_of(engine.pipeline).call
    is_distilled = call is not None and not call.has_negative_prompt
    scale = plan.guidance_scale if is_distilled else 1.0
    return replace(plan, steps=min(plan.steps, LEVELS), guidance_scale=scale)


def _with_eta(preset: DiversityPreset, eta: float) -> DiversityPreset:
    """The preset with that η; the bound on the total push is raised where it would cut a window of such pushes short."""
    window = preset.window if preset.mode == "denoised" else 1 / preset.interval
    return replace(preset, eta=eta, max_push=max(preset.max_push, eta * window))


class _Made(NamedTuple):
    """Images of one trial, prompts first: unit features, final latents, pushes, and the number of each one's prompt."""

    features: Float[Tensor, "n d"]
    latents: Float[Tensor, "n c h w"]
    pushes: Float[Tensor, " n"]
    prompts: Int[Tensor, " n"]

    @classmethod
    def of(cls, parts: Sequence["_Made"]) -> "_Made":
        """All parts, those of one prompt together."""
        joined = cls(*(torch.cat(part) for part in zip(*parts, strict=True)))
        order = torch.argsort(joined.prompts, stable=True)
        return cls(*(part[order] for part in joined))


@dataclass(frozen=True)
class _Sampler:
    """Makes the images of a trial and asks the model about them."""

    engine: PipelineEngine
    prompts: tuple[str, ...]
    plan: CalibrationPlan

    def make(self, preset: DiversityPreset, *, strength: float) -> _Made:
        """A few images of every prompt in turn, with one memory that grows after each turn."""
        self.engine.preset = preset
        bank, kept_runs, parts = MemoryBank(), KeptRuns(self.engine.method), list[_Made]()
        embeddings = self.engine.embed_prompts(self.prompts)
        size = min(IMAGES_A_REQUEST, self.plan.batch_images)
        with method_of(self.engine, kept_runs):
            for start in range(0, self.plan.images, size):
                seeds = range(start, min(start + size, self.plan.images))
                groups = [
                    SampleGroup(
                        prompt,
                        "",
                        tuple(self.plan.first_seed + number * self.plan.images + seed for seed in seeds),
                        strength,
                        bank.neighbours(embedding[None], preset) if len(bank) else None,
                    )
                    for number, (prompt, embedding) in enumerate(zip(self.prompts, embeddings, strict=True))
                ]
                turn = [
                    self._batch(groups, numbers, kept_runs)
                    for numbers in _ranges(len(groups), self.plan.batch_images // size)
                ]
                for made in turn:
                    bank.append(made.features, embeddings[made.prompts])
                parts += turn
        return _Made.of(parts)

    def trial(self, made: _Made, preset: DiversityPreset, *, eta: float) -> Trial:
        """The figures of what was made."""
        kernel = GaussianKernel(preset.latent_bandwidth)
        of_prompt = [made.features[made.prompts == number] for number in range(len(self.prompts))]
        information = torch.cat(
            [self._information(made, rows) for rows in _ranges(len(made.prompts), self.plan.batch_images)]
        )
        return Trial(
            eta,
            float(made.pushes.mean()),
            sum(vendi(features, kernel) for features in of_prompt) / len(of_prompt),
            tuple(information.reshape(len(self.prompts), -1).mean(1).tolist()),
        )

    def _batch(self, groups: Sequence[SampleGroup], numbers: range, kept_runs: KeptRuns) -> _Made:
        """The images of the groups of these numbers."""
        chosen = [groups[number] for number in numbers]
        made = self.engine.generate(chosen, self.plan.plan, lambda _done, _num_steps: None)
        samples = [sample for group in made for sample in group]
        return _Made(
            torch.stack([sample.feature for sample in samples]),
            kept_runs.last_run.latents.cpu(),
            torch.tensor([sample.push for sample in samples]),
            torch.tensor([number for number in numbers for _ in groups[number].seeds]),
        )

    def _information(self, made: _Made, rows: range) -> Float[Tensor, " n"]:
        """What the images of these rows still say of their prompts."""
        asked = asking_plan(self.engine, self.plan.plan)
        latents, first_seed = made.latents[rows.start : rows.stop], NOISE_SEED + rows.start
        texts = [self.prompts[int(number)] for number in made.prompts[rows.start : rows.stop]]
        errors, errors_without = (
            restoration_errors(self.engine, latents, prompts, asked, first_seed=first_seed)
            for prompts in (texts, [""] * len(texts))
        )
        return prompt_information(errors, errors_without)


def _ranges(number: int, size: int) -> list[range]:
    """0..number in parts of `size`, in order."""
    return [range(start, min(start + size, number)) for start in range(0, number, max(size, 1))]
