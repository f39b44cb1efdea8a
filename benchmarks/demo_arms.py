"""Arms of the demo benchmarks: one setting each, the same prompts and seeds in every arm, saved after each round.

An arm is a tenant with one memory. It asks for every prompt again and again, a few images at a time, and its memory
grows over the rounds. What is kept of an image is what the judge sees in it, and its memory entry.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from demo_prompts import Prompts
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparke_engine import MemoryBank
from sparke_engine.baselines import AmbientVendi, decoder_of, make_rival
from sparke_engine.demo.evaluate import judge_pictures
from sparke_engine.demo.networks import Judge
from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, Sample, SampleGroup
from sparke_engine.diffusion.guide import Method, Sparke
from sparke_engine.diffusion.pipelines import DEMO, load_engine
from sparke_engine.guidance.presets import DiversityPreset, preset_named

IMAGES_A_ROUND = 4
GROUPS_A_BATCH = {"cpu": 16, "cuda": 64}


def demo_engine(device: str, *, compiled: bool) -> PipelineEngine:
    """The demo model. `compiled`: its denoiser through `torch.compile`, nearly twice as fast on a CPU, equal to rounding.

    That needs a C++ compiler.
    """
    engine = load_engine(DEMO, device=device)
    if not isinstance(engine, PipelineEngine):
        raise SystemExit("the demo engine is a pipeline")
    if compiled:
        denoiser = engine.pipeline.unet
        denoiser.forward = torch.compile(denoiser.forward)
    return engine


@dataclass(frozen=True)
class Arm:
    """One setting: the guidance scale, the strength, and fields of the preset that differ from the shipped one.

    `method` makes the images differ: this engine, or a rival. With `same_seeds` every request of a prompt has the same
    seeds, so that nothing but the memory can make its images differ from the last request's.
    """

    name: str
    scale: float
    strength: float
    preset: DiversityPreset
    method: Method
    same_seeds: bool = False

    @classmethod
    def parse(cls, text: str, preset: DiversityPreset, eyes: dict[str, Any]) -> Self:
        """`scale=4,strength=0.5,eta=1.2,grid=4`, or `scale=4,method=cads,noise=0.1` with the rival's own parameters.

        `preset=NAME` starts from another preset, `seeds=same` asks with the same seeds again and again. `eyes`: what a
        rival that looks at pictures needs. Unknown names are an error that lists the known ones.
        """
        values = dict(part.split("=", 1) for part in text.split(","))
        scale, strength = float(values.pop("scale")), float(values.pop("strength", "1"))
        same_seeds = values.pop("seeds", "fresh") == "same"
        preset = preset_named(values.pop("preset")) if "preset" in values else preset
        rival = values.pop("method", None)
        fields_of = _PRESET_FIELDS if rival is None else ("grid",)
        changes = {name: values.pop(name) for name in list(values) if name in fields_of}
        if rival is None and values:
            raise SystemExit(f"no preset field {next(iter(values))!r}; there are {', '.join(_PRESET_FIELDS)}")
        if rival is None:
            return cls(text, scale, strength, _with_fields(preset, changes), Sparke(), same_seeds)
        made = make_rival(rival, **(eyes if rival == "ambient" else {}))
        made = replace(made, **{name: _read(value, getattr(made, name)) for name, value in values.items()})
        return cls(text, scale, strength, made.preset(_with_fields(preset, changes)), made, same_seeds)

    def seeds(self, first: int, prompt: int, number: int) -> tuple[int, ...]:
        """The seeds of a prompt's request in round `number`."""
        start = first + 1000 * prompt + (0 if self.same_seeds else IMAGES_A_ROUND * number)
        return tuple(range(start, start + IMAGES_A_ROUND))


_PRESET_FIELDS = tuple(field.name for field in fields(DiversityPreset))


def _with_fields(preset: DiversityPreset, changes: dict[str, str]) -> DiversityPreset:
    """The preset with fields read from text, each as the type that it has."""
    read: dict[str, Any] = {name: _read(text, getattr(preset, name)) for name, text in changes.items()}
    return replace(preset, **read)


def _read(text: str, like: Any) -> Any:
    """The text as a value of the same type; `none` or a number for a grid of as many rows as columns."""
    if like is None or isinstance(like, tuple):
        return None if text == "none" else (int(text), int(text))
    return text == "true" if isinstance(like, bool) else type(like)(text)


@dataclass(frozen=True)
class Outcome:
    """What an arm made, prompts first: attributes [p,i,4], judge's features [p,i,128], entries [p,i,d], pushes [p,i]."""

    attributes: Tensor
    judged: Tensor
    features: Tensor
    pushes: Tensor


class ArmRunner:
    """Runs arms on one engine, each round saved, so that a run that was cut short goes on where it stood."""

    def __init__(self, engine: PipelineEngine, judge: Judge, folder: Path, *, steps: int) -> None:
        self._engine, self._judge, self._folder, self._steps = engine, judge, folder, steps
        self._shipped = engine.preset

    def arm(self, text: str) -> Arm:
        """The arm of that text. Ambient Vendi guidance sees with the judge's own eyes, which no other method does."""
        decode, bank = decoder_of(self._engine.pipeline), MemoryBank()
        eyes = {"decode": decode, "encode": lambda pictures: self._judge(pictures)[0], "bank": bank}
        return Arm.parse(text, self._shipped, eyes)

    def run(self, arm: Arm, prompts: Prompts, images_a_prompt: int) -> Outcome:
        """All images of an arm. Exits where the folder holds rounds that were made with another preset."""
        self._check_preset(arm)
        bank, rounds = MemoryBank(), []
        embeddings = self._engine.embed_prompts(prompts.texts)
        for number in range(images_a_prompt // IMAGES_A_ROUND):
            path = self._folder / arm.name / f"round-{number:03d}.safetensors"
            if not path.exists():
                save_file(self._round(arm, prompts, number, bank), path)
            made = load_file(path)
            rounds.append(made)
            asked = embeddings.repeat_interleave(IMAGES_A_ROUND, dim=0)
            bank.append(made["features"].flatten(0, 1), asked)
            if isinstance(arm.method, AmbientVendi):
                arm.method.bank.append(made["judged"].flatten(0, 1), asked)
        return Outcome(
            *(torch.cat([made[field.name] for made in rounds], dim=1) for field in fields(Outcome))
        )

    def is_complete(self, arm: Arm, images_a_prompt: int) -> bool:
        """Whether every round of the arm is there."""
        last = images_a_prompt // IMAGES_A_ROUND - 1
        return (self._folder / arm.name / f"round-{last:03d}.safetensors").exists()

    def _check_preset(self, arm: Arm) -> None:
        path = self._folder / arm.name / "preset.json"
        own = json.dumps({"preset": asdict(arm.preset), "method": _described(arm.method)}, indent=1)
        if path.exists() and path.read_text() != own:
            raise SystemExit(f"{path.parent} was made with another preset: give another --out, or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(own)

    def _round(self, arm: Arm, prompts: Prompts, number: int, bank: MemoryBank) -> dict[str, Tensor]:
        self._engine.preset, self._engine.method = arm.preset, arm.method
        groups_a_batch = GROUPS_A_BATCH[self._engine.pipeline.device.type]
        plan = DenoisingPlan(64, 64, self._steps, arm.scale)
        groups = [
            SampleGroup(
                prompt=text,
                negative_prompt="",
                seeds=arm.seeds(prompts.first_seed, index, number),
                strength=arm.strength,
                neighbours=bank.neighbours(self._engine.embed_prompts([text]), arm.preset)
                if len(bank)
                else None,
            )
            for index, text in enumerate(prompts.texts)
        ]
        samples: list[list[Sample]] = []
        for start in range(0, len(groups), groups_a_batch):
            samples += self._engine.generate(
                groups[start : start + groups_a_batch], plan, lambda _done, _all: None
            )
        flat = [sample for group in samples for sample in group]
        verdict = judge_pictures(self._judge, as_pictures(flat))
        shape = (len(groups), IMAGES_A_ROUND, -1)
        return {
            "attributes": verdict.attributes.reshape(shape),
            "judged": verdict.features.reshape(shape).contiguous(),
            "features": torch.stack([sample.feature for sample in flat]).reshape(shape),
            "pushes": torch.tensor([sample.push for sample in flat]).reshape(shape[:2]),
        }


def _described(method: Method) -> str:
    """The method's name and parameters, without the functions and memories that it was handed."""
    values = {field.name: getattr(method, field.name) for field in fields(method)}  # type: ignore[arg-type]  # all are dataclasses
    told = (
        f"{name}={value!r}"
        for name, value in values.items()
        if isinstance(value, int | float | str | tuple | None)
    )
    return f"{type(method).__name__}({', '.join(told)})"


def as_pictures(samples: list[Sample]) -> Tensor:
    """The samples' images as pictures [n,3,64,64] in [0,1]."""
    arrays = np.stack([np.asarray(sample.image, dtype=np.float32) for sample in samples])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous() / 255.0
