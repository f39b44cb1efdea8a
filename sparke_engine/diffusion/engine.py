"""Engines: groups of images in, samples out. One protocol for diffusers pipelines and for the weightless toy."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sparke_engine.diffusion.autoencoding import decoded, encoded, one_at_a_time
from sparke_engine.diffusion.calls import CalledWithText
from sparke_engine.diffusion.edits import (
    EditKind,
    Picture,
    check_pictures,
    picture_arguments,
    put_back,
    taken_by,
)
from sparke_engine.diffusion.families import embed_prompt, family_of, served_pipelines
from sparke_engine.diffusion.guide import FinishedRun, GuidedGroup, Method, Sparke
from sparke_engine.diffusion.loras import Loras, LoraScale
from sparke_engine.diffusion.previews import Previews
from sparke_engine.diffusion.recording import StepRecorder
from sparke_engine.diffusion.seam import guided_steps
from sparke_engine.diffusion.steps import Observer, Step
from sparke_engine.diffusion.timing import EngineListener, Stopwatch
from sparke_engine.errors import (
    InvalidArgument,
    InvalidPlan,
    OutputMismatch,
    ShapeMismatch,
    SparkeError,
    UnsupportedPipeline,
)
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries, Reference
from sparke_engine.types import Neighbours

OnStep = Callable[[int, int], None]
EMBEDDING_CACHE = 1024


@dataclass(frozen=True)
class SampleGroup:
    """One request's images inside a device batch: they share prompt and memory, and push each other apart.

    `neighbours` has b = 1; a bandwidth of None is the preset's. `references` count by weights of their own, at any strength.
    `picture`: what all of its images begin with, where they do not begin with noise alone.
    """

    prompt: str
    negative_prompt: str
    seeds: tuple[int, ...]
    strength: float
    neighbours: Neighbours | None
    latent_bandwidth: float | None = None
    prompt_bandwidth: float | None = None
    references: tuple[Reference, ...] = ()
    previews: Previews | None = None
    picture: Picture | None = None


ALONE_PX = 2**19
"""768 by 768 px are more, 512 by 512 px are less."""


@dataclass(frozen=True)
class Sample:
    """One finished image.

    `feature` is fp32 on the CPU; `push` the mean over all steps of the push proper in norms of x̂0, 0 at strength 0 without references; `nearest_similarity` the
    largest k_Z of the finished latents to a neighbour, None without neighbours.
    """

    image: Image.Image
    feature: Float[Tensor, " d"]
    push: float
    num_neighbours: int
    nearest_similarity: float | None


@dataclass(frozen=True)
class DenoisingPlan:
    """What all images of a device batch share.

    `edit_strength`: how much of the groups' pictures is given up to noise, in (0, 1]; None where they have none.
    """

    width_px: int
    height_px: int
    steps: int
    guidance_scale: float
    loras: tuple[LoraScale, ...] = ()
    edit_strength: float | None = None


@runtime_checkable
class ImageEngine(Protocol):
    """Makes images. An image depends on its own group and on the batch's shape, never on what other groups hold."""

    preset: DiversityPreset
    prompt_dim: int
    edits: frozenset[EditKind]
    listener: EngineListener | None

    @property
    def feature_dim(self) -> int:
        """The length of an image's feature."""

    def embed_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "n p"]:
        """Unit embeddings, fp32 on the CPU; each prompt's is independent of the others."""

    def encode_pictures(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Unit features of RGB pictures, fp32 on the CPU, as of images that the model had made; each for itself."""

    def generate(
        self, groups: Sequence[SampleGroup], plan: DenoisingPlan, on_step: OnStep
    ) -> list[list[Sample]]:
        """For each group its samples in the order of its seeds. `on_step(done, num_steps)` may raise to cancel."""

    def close(self) -> None:
        """Give the device's memory back. Twice does no harm."""


class PipelineEngine:
    """A stock pipeline that makes images of text behind the protocol; see `families`. One thread at a time.

    Images of `alone_px` pixels or more are decoded one at a time, which takes the device's memory of one; smaller ones
    together, for they share the start of each kernel. Prompts are embedded without the LoRAs of any plan: what is near in a memory must not depend on what an image was made
    with.
    """

    def __init__(
        self, pipe: Any, preset: DiversityPreset, method: Method | None = None, *, loras: Loras | None = None
    ) -> None:
        self.preset = preset
        self.loras = Loras() if loras is None else loras
        self.method: Method = Sparke() if method is None else method
        self.listener: EngineListener | None = None
        self.alone_px = ALONE_PX
        self._pipe = pipe
        self._embeddings: OrderedDict[str, Tensor] = OrderedDict()
        self._recorder = StepRecorder()
        self._call = _call_of(pipe)
        makers = family_of(pipe).edits
        self.edits = makers.kinds
        self._editors = {kind: makers.make(pipe, kind) for kind in sorted(self.edits)}
        self._latent_shape = self._call.latent_shape(pipe)
        self.prompt_dim = self.embed_prompts([""]).shape[1]

    @property
    def feature_dim(self) -> int:
        """The length d of a feature under the engine's preset; that of an image of the usual size where d depends on it."""
        return self.preset.feature_map.dim(*self._latent_shape)

    @property
    def own_side_px(self) -> int:
        """The side of an image of the model's usual size."""
        return int(self._latent_shape[1] * self.pipeline.vae_scale_factor)

    @property
    def pipeline(self) -> Any:
        """The stock pipeline."""
        if self._pipe is None:
            raise SparkeError("this engine is closed; load another")
        return self._pipe

    def embed_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "n p"]:
        """Unit embeddings, fp32 on the CPU; the latest are kept."""
        found = []
        for prompt in prompts:
            if self.listener is not None:
                self.listener.embedded(is_known=prompt in self._embeddings)
            found.append(self._embed(prompt))
        return torch.stack(found)

    def encode_pictures(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Unit features of RGB pictures, fp32 on the CPU, as of images that the model had made; each for itself.

        Where the preset keeps whole latents, pictures are of the model's own size: else ShapeMismatch. Raises
        UnsupportedPipeline and InvalidArgument as `encoded` does.
        """
        return picture_features(self.pipeline, pictures, self.preset, num_features=self.feature_dim)

    def generate(
        self, groups: Sequence[SampleGroup], plan: DenoisingPlan, on_step: OnStep
    ) -> list[list[Sample]]:
        """Run one device batch. Raises InvalidPlan, InvalidArgument, ShapeMismatch, LoraNotLoadable, BrokenOutput, or what `on_step` raises."""
        check_groups(groups, self.feature_dim, self.prompt_dim)
        self.loras.check(plan.loras)
        self._call.check(self.pipeline, plan)
        self._check_size(plan)
        pipe = self._pipeline_for(groups, plan)
        rows = group_rows(groups)
        guide = self.method.guide(
            [self._guided(group, part) for group, part in zip(groups, rows, strict=True)]
        )
        seeds = [seed for group in groups for seed in group.seeds]
        observe, stopwatch = self._observer(groups, rows), Stopwatch()
        seam = guided_steps(pipe, guide, on_step, self._recorder, observe=observe, stopwatch=stopwatch)
        is_large = plan.width_px * plan.height_px >= self.alone_px
        alone = one_at_a_time(pipe) if is_large else nullcontext()
        with self.loras.on(self.pipeline, plan.loras), self.method.around(pipe, seeds), seam, alone:
            images = pipe(
                **self._arguments(pipe, groups, plan),
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            ).images
        if len(images) != len(seeds) or len(guide.runs) != 1:
            raise OutputMismatch(
                f"asked the pipeline for {len(seeds)} images in 1 run, got {len(images)} in {len(guide.runs)}"
            )
        if self.listener is not None:
            self.listener.finished(stopwatch.read(guide.runs[0].latents.device))
        return [
            finished_samples(group, images[part], _of_rows(guide.runs[0], part), self._preset_of(group))
            for group, part in zip(groups, rows, strict=True)
        ]

    def _observer(self, groups: Sequence[SampleGroup], rows: Sequence[slice]) -> Observer | None:
        """Shows the previews that groups want."""
        wanted = [
            (group.previews, part)
            for group, part in zip(groups, rows, strict=True)
            if group.previews is not None
        ]

        def observe(step: Step) -> None:
            for previews, part in wanted:
                number = previews.number_after(step.index + 1, step.num_steps)
                if number is not None:
                    previews.show(number, decoded(self.pipeline, step.clean[part]))

        return observe if wanted else None

    def close(self) -> None:
        """Give the device's memory back."""
        self._pipe = None
        self._editors.clear()
        self._recorder = StepRecorder()
        self._embeddings.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _embed(self, prompt: str) -> Tensor:
        if prompt not in self._embeddings:
            self._embeddings[prompt] = embed_prompt(self.pipeline, prompt)
            if len(self._embeddings) > EMBEDDING_CACHE:
                self._embeddings.popitem(last=False)
        self._embeddings.move_to_end(prompt)
        return self._embeddings[prompt]

    def _check_size(self, plan: DenoisingPlan) -> None:
        side_px = self.own_side_px
        if self.preset.grid is None and (plan.width_px, plan.height_px) != (side_px, side_px):
            raise InvalidPlan(
                f"the engine's preset has no grid, so its features are those of images of {side_px}x{side_px} px alone, got"
                f" {plan.width_px}x{plan.height_px}: take that size, or a preset with a grid"
            )

    def _pipeline_for(self, groups: Sequence[SampleGroup], plan: DenoisingPlan) -> Any:
        """The stock pipeline, or the one that edits pictures with its parts."""
        kind = check_plan(groups, plan, self.edits)
        return self.pipeline if kind is None else self._editors[kind]

    def _arguments(self, pipe: Any, groups: Sequence[SampleGroup], plan: DenoisingPlan) -> dict[str, Any]:
        prompts = [group.prompt for group in groups for _ in group.seeds]
        negatives = [group.negative_prompt for group in groups for _ in group.seeds]
        pictures = [group.picture for group in groups for _ in group.seeds if group.picture is not None]
        given = self._call.arguments(self.pipeline, prompts, negatives, plan)
        if plan.edit_strength is None:
            return given
        return taken_by(pipe, given | picture_arguments(pipe, pictures, plan.edit_strength))

    def _preset_of(self, group: SampleGroup) -> DiversityPreset:
        return self.preset.with_bandwidths(group.latent_bandwidth, group.prompt_bandwidth)

    def _guided(self, group: SampleGroup, rows: slice) -> GuidedGroup:
        preset = self._preset_of(group)
        entries, asked = None, None if group.strength == 0 else self._embed(group.prompt)
        if group.neighbours is not None and asked is not None:
            entries = Entries.of(group.neighbours, asked, preset)
        return GuidedGroup(
            rows,
            preset,
            group.strength,
            entries,
            keeps_guidance=bool(group.negative_prompt),
            references=group.references,
            prompt_embedding=asked,
        )


def picture_features(
    pipe: Any, pictures: Sequence[Image.Image], preset: DiversityPreset, *, num_features: int
) -> Float[Tensor, "n d"]:
    """Unit features of RGB pictures under a preset, fp32 on the CPU. Raises ShapeMismatch where one has another length."""
    found = [preset.feature_map.feature(latents)[0].cpu() for latents in encoded(pipe, pictures)]
    for picture, feature in zip(pictures, found, strict=True):
        if len(feature) != num_features:
            raise ShapeMismatch(
                f"a feature has {num_features} numbers here, and that of a picture of {picture.width}x{picture.height} px"
                f" has {len(feature)}: scale it to the model's own size"
            )
    return torch.stack(found) if found else torch.empty(0, num_features)


def group_rows(groups: Sequence[SampleGroup]) -> list[slice]:
    """Which rows of the batch each group's images have."""
    ends = accumulate((len(group.seeds) for group in groups), initial=0)
    return [slice(start, stop) for start, stop in pairwise(ends)]


def check_plan(
    groups: Sequence[SampleGroup], plan: DenoisingPlan, edits: frozenset[EditKind]
) -> EditKind | None:
    """What the batch does to its groups' pictures; None where it has none. Raises InvalidArgument and InvalidPlan."""
    pictures = [group.picture for group in groups]
    kind = check_pictures(pictures, (plan.width_px, plan.height_px), plan.steps, plan.edit_strength)
    if kind is not None and kind not in edits:
        able = ", ".join(sorted(edits)) or "nothing"
        raise InvalidArgument(f"this model cannot edit by {kind}; what it can edit by: {able}")
    return kind


def check_groups(groups: Sequence[SampleGroup], feature_dim: int, prompt_dim: int) -> None:
    """Raise InvalidArgument or ShapeMismatch for a group that an engine of these lengths cannot take."""
    if not groups:
        raise InvalidArgument("a batch has at least one group, got none")
    for group in groups:
        if not group.seeds:
            raise InvalidArgument("a group has at least one seed, got none")
        if not 0 <= group.strength <= 1:
            raise InvalidArgument(f"a strength is in [0, 1], got {group.strength}")
        for reference in group.references:
            reference.check(feature_dim)
        known = group.neighbours
        if known is None or known.mask.shape[1] == 0:
            continue
        expected = (1, feature_dim, prompt_dim)
        actual = (known.num_problems, known.features.shape[2], known.prompt_embeddings.shape[2])
        if actual != expected:
            raise ShapeMismatch(f"a group's neighbours have (b, d, p) = {expected}, got {actual}")


def finished_samples(
    group: SampleGroup, images: Sequence[Image.Image], run: FinishedRun, preset: DiversityPreset
) -> list[Sample]:
    """The samples of one group from its images and its part of the run."""
    features = preset.feature_map.feature(run.latents)
    known = group.neighbours
    num_neighbours = 0 if known is None else int(known.mask.sum())
    nearest: list[float | None] = [None] * len(images)
    if known is not None and num_neighbours > 0:
        present = known.features[0][known.mask[0]].to(features)
        nearest = list(preset.kernel_of_power(1.0).gram(features, present).amax(1).tolist())
    return [
        Sample(
            put_back(group.picture, image).convert("RGB"), feature, float(push), num_neighbours, similarity
        )
        for image, feature, push, similarity in zip(images, features.cpu(), run.pushes, nearest, strict=True)
    ]


def _of_rows(run: FinishedRun, rows: slice) -> FinishedRun:
    return FinishedRun(run.latents[rows], run.pushes[rows])


def _call_of(pipe: Any) -> CalledWithText:
    call = family_of(pipe).call
    if call is None:
        raise UnsupportedPipeline(
            f"an engine makes images of text, with one of {', '.join(served_pipelines())}; {type(pipe).__name__} is for "
            "`guided` alone"
        )
    return call
