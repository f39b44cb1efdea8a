"""`sparke calibrate`: makes a preset for a model of the catalogue from a file of prompts.

`sparke_engine/diffusion/calibration.py` measures; here prompts are read, the model is loaded as a worker loads it, and the
preset is written in the form that the catalogue takes, with the measurements as comments.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from app.catalogue import load_catalogue
from app.domain.ids import ModelId
from app.domain.model import ModelSpec
from app.domain.preset import PresetSpec
from app.errors import InvalidRequest, ModelNotFound
from app.settings import Settings
from app.worker.model.models import choose_device, load_spec
from sparke_engine.diffusion.calibration import Calibration, CalibrationPlan, calibrate
from sparke_engine.diffusion.engine import DenoisingPlan, ImageEngine
from sparke_engine.diffusion.pipelines import kinds_preset
from sparke_engine.errors import SparkeError
from sparke_engine.guidance.calibration import kept

MIN_SCENES = 2
COLUMNS = ("eta", "push", "Vendi", "information", "kept", "+-")

Scenes = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Choices:
    """What a person may choose; None is the model's own."""

    images: int
    steps: int | None
    guidance_scale: float | None
    keep: float
    first_seed: int
    eta_factors: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The preset as TOML, and the table of what it follows from."""

    table: str
    toml: str

    @property
    def commented_toml(self) -> str:
        """Both as one TOML text."""
        comment = "".join(f"# {line}".rstrip() + "\n" for line in self.table.splitlines())
        return f"{comment}\n{self.toml}"


def run_calibration(
    settings: Settings,
    model_id: str,
    prompts: Path,
    choices: Choices,
    *,
    on_trial: Callable[[int, int], None],
) -> Outcome:
    """Calibrate one model of the catalogue.

    Raises ModelNotFound, InvalidRequest where prompts, choices or model give no preset, ConfigurationError for the
    catalogue.
    """
    catalogue = load_catalogue(settings.models_file)
    spec = catalogue.get(ModelId(model_id))
    if spec is None:
        raise ModelNotFound(f"no model {model_id!r}; the catalogue has {', '.join(catalogue)}")
    scenes = read_scenes(prompts)
    try:
        plan = _plan_of(spec, choices, settings.max_batch_images)
        engine = load_spec(replace(spec, loras=()), choose_device(settings.device))
        try:
            found = calibrate(engine, scenes, plan, on_trial)
            return _outcome(spec, engine, (found, plan), scenes)
        finally:
            engine.close()
    except SparkeError as error:
        raise InvalidRequest(f"model {model_id} cannot be calibrated: {error}") from error


def read_scenes(path: Path) -> Scenes:
    """The prompts of a file, one a line. Where blank lines divide them, those of one part state one scene.

    InvalidRequest where the file cannot be read, or holds fewer than two scenes.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidRequest(f"the prompts {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the prompts {path} are not UTF-8 text: {error}") from error
    parts: list[list[str]] = [[]]
    for line in map(str.strip, text.splitlines()):
        if line:
            parts[-1].append(line)
        else:
            parts.append([])
    parts = [list(dict.fromkeys(part)) for part in parts if part]
    scenes = parts if len(parts) > 1 else [[line] for part in parts for line in part]
    if len(scenes) < MIN_SCENES:
        raise InvalidRequest(
            f"the prompts {path} hold {len(scenes)} {'scene' if len(scenes) == 1 else 'scenes'}, and a calibration needs "
            f"{MIN_SCENES} or more, better 8: write one prompt a line, or parts of paraphrases divided by blank lines"
        )
    return tuple(tuple(scene) for scene in scenes)


def _plan_of(spec: ModelSpec, choices: Choices, batch_images: int) -> CalibrationPlan:
    size = spec.size
    return CalibrationPlan(
        DenoisingPlan(
            size.default_width_px,
            size.default_height_px,
            spec.default_steps if choices.steps is None else choices.steps,
            spec.default_guidance_scale if choices.guidance_scale is None else choices.guidance_scale,
        ),
        images=choices.images,
        first_seed=choices.first_seed,
        eta_factors=choices.eta_factors,
        keep=choices.keep,
        batch_images=batch_images,
    )


def _outcome(
    spec: ModelSpec, engine: ImageEngine, of: tuple[Calibration, CalibrationPlan], scenes: Scenes
) -> Outcome:
    found, plan = of
    preset = _as_spec(spec, engine, found)
    moved = (
        f"It states the grid, which {spec.diversity_preset} has and others of this kind have not: memories of the space",
        f"{spec.latent_space} are left, those of {spec.latent_space}-{preset.grid_name} are read.",
    )
    lines = [
        f"Diversity preset of {spec.model_id} ({spec.source}), made by `sparke calibrate`:",
        f"{len(scenes)} scenes, {plan.images} images of each, seeds from {plan.first_seed}, {plan.plan.steps} steps,",
        f"guidance scale {plan.plan.guidance_scale:g}.",
        "",
        *_rows(found),
        "",
        *_findings(found, plan, scenes, was=engine.preset.eta),
        *(moved if _moves_memories(spec, engine) else ()),
    ]
    return Outcome("\n".join(lines) + "\n", preset.to_toml())


def _rows(found: Calibration) -> list[str]:
    """One line a trial."""
    rows = [COLUMNS] + [
        (
            f"{trial.eta:.3g}",
            f"{trial.push:.3f}",
            f"{trial.vendi:.2f}",
            f"{trial.information:.4f}",
            *(f"{100 * part:.0f} %" for part in kept(trial, found.trials[0])),
        )
        for trial in found.trials
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _findings(found: Calibration, plan: CalibrationPlan, scenes: Scenes, *, was: float) -> list[str]:
    strength, prompts = found.strength, found.prompt_bandwidth
    where = f"Strength 1: eta {strength.eta:.3g} (before: {was:.3g}), where images keep {100 * strength.kept:.0f} % of"
    lines = [f"{where} what unguided ones say of their prompts."]
    if not strength.is_bracketed:
        side, hint = ("most", "larger") if strength.kept >= plan.keep else ("least", "smaller")
        lines.append(
            f"That is the {side} that was tried: for the {100 * plan.keep:.0f} % wanted, try {hint} --eta-factor."
        )
    lines.append(
        f"Latent bandwidth: {found.preset.latent_bandwidth:.3g}, the median distance of images of one prompt."
    )
    lines.append(
        f"Prompt bandwidth: {prompts.bandwidth:.3g}; {100 * prompts.unrelated_far:.0f} % of unrelated pairs are far."
    )
    if all(len(scene) == 1 for scene in scenes):
        lines.append("No paraphrases were given, so only equal prompts count as related.")
    elif not prompts.can_be_had:
        lines.append(
            f"No bandwidth has paraphrases near and other prompts far: at this one {100 * prompts.related_near:.0f} % of "
            "paraphrases are near."
        )
    return lines


def _moves_memories(spec: ModelSpec, engine: ImageEngine) -> bool:
    """Whether the catalogue names a preset whose grid is not the kind's: as a table it states it, and its space with it."""
    return isinstance(spec.diversity_preset, str) and engine.preset.grid != kinds_preset(engine).grid


def _as_spec(spec: ModelSpec, engine: ImageEngine, found: Calibration) -> PresetSpec:
    """All members of the preset, so that no later version changes it; the grid only where the catalogue states one.

    A grid that the catalogue did not state is the kind's own, and stating it would give the model's memories another
    space. But where it names a preset of another grid the table has to state it, see `_moves_memories`.
    """
    given = spec.diversity_preset
    base, stated_grid = (given, None) if isinstance(given, str) else (given.base, given.grid)
    if _moves_memories(spec, engine):
        stated_grid = engine.preset.grid or "whole"
    members: dict[str, Any] = {
        member.name: getattr(found.preset, member.name)
        for member in fields(found.preset)
        if member.name != "grid"
    }
    for name in ("eta", "latent_bandwidth", "prompt_bandwidth"):
        members[name] = float(f"{members[name]:.4g}")
    return PresetSpec(base=base, grid=stated_grid, **members)
