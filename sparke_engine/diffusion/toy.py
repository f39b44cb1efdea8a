"""An engine without weights: deterministic, quick, honest to the protocol, and its images say what they answer.

Its image is a grid of blocks. The first row of blocks spells the SHA-256 of the prompt, the second the seed, the rest
shows the latents: `read_toy_image` gets prompt digest and seed back, so a test sees when answers were mixed up. Its
"denoising" starts at latents drawn from prompt and seed and pushes them as a real engine would. A picture is mixed into
these latents in proportion to what the edit's strength leaves of it.
"""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sparke_engine.core.kernels import unit
from sparke_engine.diffusion.edits import EditKind, Picture
from sparke_engine.diffusion.engine import (
    EMBEDDING_CACHE,
    DenoisingPlan,
    OnStep,
    Sample,
    SampleGroup,
    check_groups,
    check_plan,
    finished_samples,
)
from sparke_engine.diffusion.guide import FinishedRun, GroupGuide, GuidedGroup
from sparke_engine.diffusion.steps import Step
from sparke_engine.diffusion.timing import EngineListener, Stopwatch
from sparke_engine.errors import InvalidPlan
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries

CHANNELS, SIDE = 4, 8
PROMPT_DIM = 32
BLOCKS = 8
SEED_BYTES = 8


class ToyEngine:
    """The weightless engine. Prompts that share words have near embeddings; an image depends on its group alone."""

    def __init__(self, preset: DiversityPreset) -> None:
        self.preset = preset
        self.edits: frozenset[EditKind] = frozenset({"image", "mask"})
        self.feature_dim = preset.feature_map.dim(CHANNELS, SIDE, SIDE)
        self.prompt_dim = PROMPT_DIM
        self.listener: EngineListener | None = None
        self._known: set[str] = set()

    def embed_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "n p"]:
        """The unit sum of one random vector a word. Nothing is kept; told as known is what a real engine would know."""
        for prompt in prompts:
            if self.listener is not None:
                self.listener.embedded(is_known=prompt in self._known)
            if len(self._known) == EMBEDDING_CACHE:
                self._known.clear()
            self._known.add(prompt)
        return torch.stack([_embed(prompt) for prompt in prompts])

    def encode_pictures(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Unit features of the latents that the toy would show as the pictures."""
        found = [self.preset.feature_map.feature(_seen(Picture(picture))[None])[0] for picture in pictures]
        return torch.stack(found) if found else torch.empty(0, self.feature_dim)

    def generate(
        self, groups: Sequence[SampleGroup], plan: DenoisingPlan, on_step: OnStep
    ) -> list[list[Sample]]:
        """Push the latents of each group by itself, for `plan.steps` steps in lockstep."""
        check_groups(groups, self.feature_dim, self.prompt_dim)
        if min(plan.width_px, plan.height_px) < BLOCKS or plan.width_px % BLOCKS or plan.height_px % BLOCKS:
            raise InvalidPlan(f"the toy's sides are positive multiples of {BLOCKS} px, got {plan}")
        if plan.loras:
            raise InvalidPlan(f"the toy has no weights that LoRAs could change, got {plan.loras}")
        if plan.steps < 1:
            raise InvalidPlan(f"a plan has at least one step, got {plan.steps}")
        check_plan(groups, plan, self.edits)
        latents = [_first_latents(group, plan) for group in groups]
        guides = [GroupGuide([self._guided(group)]) for group in groups]
        stopwatch, device = Stopwatch(), torch.device("cpu")
        for index in range(plan.steps):
            begun = stopwatch.mark(device)
            latents = [
                _advance(part, guide, index, plan.steps) for part, guide in zip(latents, guides, strict=True)
            ]
            ended = stopwatch.mark(device)
            stopwatch.guided(begun, ended)
            stopwatch.end_step(ended)
            for group, part in zip(groups, latents, strict=True):
                _show_preview(group, part, index + 1, plan)
            on_step(index + 1, plan.steps)
        for part, guide in zip(latents, guides, strict=True):
            guide.finish(part, plan.steps)
        samples = [
            self._samples(group, guide.runs[0], plan) for group, guide in zip(groups, guides, strict=True)
        ]
        if self.listener is not None:
            self.listener.finished(stopwatch.read(device))
        return samples

    def close(self) -> None:
        """Nothing to give back."""

    def _guided(self, group: SampleGroup) -> GuidedGroup:
        preset = self.preset.with_bandwidths(group.latent_bandwidth, group.prompt_bandwidth)
        entries = None
        if group.neighbours is not None and group.strength > 0:
            entries = Entries.of(group.neighbours, _embed(group.prompt), preset)
        return GuidedGroup(slice(None), preset, group.strength, entries, references=group.references)

    def _samples(self, group: SampleGroup, run: FinishedRun, plan: DenoisingPlan) -> list[Sample]:
        preset = self.preset.with_bandwidths(group.latent_bandwidth, group.prompt_bandwidth)
        images = [
            _paint(group.prompt, seed, latents, plan)
            for seed, latents in zip(group.seeds, run.latents, strict=True)
        ]
        return finished_samples(group, images, run, preset)


def prompt_digest(prompt: str) -> bytes:
    """What the first row of blocks spells."""
    return hashlib.sha256(prompt.encode()).digest()[: 3 * BLOCKS]


def read_toy_image(image: Image.Image) -> tuple[bytes, int]:
    """The prompt's digest and the seed that a toy image shows."""
    width_px, height_px = image.width // BLOCKS, image.height // BLOCKS
    blocks = (
        image.convert("RGB").resize((BLOCKS, BLOCKS), Image.Resampling.NEAREST)
        if width_px and height_px
        else image
    )
    pixels = blocks.tobytes()
    digest, seed_row = pixels[: 3 * BLOCKS], pixels[3 * BLOCKS : 6 * BLOCKS]
    return digest, int.from_bytes(seed_row[::3], "big")


def _paint(prompt: str, seed: int, latents: Tensor, plan: DenoisingPlan) -> Image.Image:
    grey = seed.to_bytes(SEED_BYTES, "big")
    rows = prompt_digest(prompt) + bytes(value for level in grey for value in (level, level, level))
    shown = ((latents[:3, 2:].tanh() + 1) * 127.5).round().to(torch.uint8)
    rows += bytes(shown.permute(1, 2, 0).flatten().tolist())
    small = Image.frombytes("RGB", (BLOCKS, BLOCKS), rows)
    return small.resize((plan.width_px, plan.height_px), Image.Resampling.NEAREST)


def _show_preview(group: SampleGroup, latents: Tensor, done: int, plan: DenoisingPlan) -> None:
    previews = group.previews
    number = None if previews is None else previews.number_after(done, plan.steps)
    if previews is not None and number is not None:
        painted = zip(group.seeds, latents, strict=True)
        previews.show(number, [_paint(group.prompt, seed, part, plan) for seed, part in painted])


def _advance(latents: Tensor, guide: GroupGuide, index: int, num_steps: int) -> Tensor:
    step = Step(index, num_steps, lambda: latents)
    for move in guide.displace(step):
        latents = latents.clone()
        latents[move.rows] -= move.delta
    for move in guide.before(step):
        latents = latents.clone()
        latents[move.rows] -= move.delta / num_steps
    for move in guide.after(step, latents):
        latents = latents.clone()
        latents[move.rows] -= move.delta
    return latents


def _latents(prompt: str, seed: int) -> Float[Tensor, "c h w"]:
    """Half the prompt's own pattern, half the seed's: images of one prompt are near, but differ."""
    shape = (CHANNELS, SIDE, SIDE)
    common = torch.randn(shape, generator=_generator(prompt.encode()))
    own = torch.randn(shape, generator=_generator(prompt.encode() + b"\0" + seed.to_bytes(SEED_BYTES, "big")))
    return common + own


def _first_latents(group: SampleGroup, plan: DenoisingPlan) -> Float[Tensor, "n c h w"]:
    drawn = torch.stack([_latents(group.prompt, seed) for seed in group.seeds])
    if group.picture is None or plan.edit_strength is None:
        return drawn
    return torch.lerp(_seen(group.picture), drawn, plan.edit_strength)


def _seen(picture: Picture) -> Float[Tensor, "c h w"]:
    """The latents that `_paint` shows as the picture."""
    small = picture.image.resize((SIDE, SIDE), Image.Resampling.BOX)
    levels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).reshape(SIDE, SIDE, 3)
    shown = (levels.permute(2, 0, 1).float() / 127.5 - 1).clamp(-0.99, 0.99).atanh()
    return torch.cat([shown, shown.mean(0, keepdim=True)])


def _embed(prompt: str) -> Float[Tensor, " p"]:
    words = prompt.lower().split() or [""]
    return unit(sum((_word(word) for word in words), torch.zeros(PROMPT_DIM)))


def _word(word: str) -> Float[Tensor, " p"]:
    return torch.randn(PROMPT_DIM, generator=_generator(word.encode()))


def _generator(key: bytes) -> torch.Generator:
    seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1
    return torch.Generator("cpu").manual_seed(seed)
