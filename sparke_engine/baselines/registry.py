"""Every rival by name, with the parameter that a benchmark sweeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from sparke_engine.baselines.ambient import AmbientVendi
from sparke_engine.baselines.cads import Cads
from sparke_engine.baselines.guidance_scale import LimitedInterval, Unguided
from sparke_engine.baselines.modes import PaperMode, ReleasedMode
from sparke_engine.baselines.particles import ParticleGuidance
from sparke_engine.baselines.rival import Rival
from sparke_engine.baselines.spell import Spell
from sparke_engine.baselines.vendi import LatentVendi
from sparke_engine.errors import InvalidArgument


@dataclass(frozen=True)
class RivalKind:
    """How to make a rival, and how to sweep it.

    Attributes:
        title: its name in tables.
        make: its class.
        knob: the parameter that makes it stronger or weaker.
        values: a sweep of the knob, from weak to strong.
        knob_of: whether the knob is the rival's own or the denoising plan's.
        needs: what a caller has to give beside the knob.
    """

    title: str
    make: Callable[..., Rival]
    knob: str
    values: tuple[float, ...]
    knob_of: Literal["rival", "plan"] = "rival"
    needs: tuple[str, ...] = ()


RIVALS: Final[Mapping[str, RivalKind]] = {
    "cfg": RivalKind(
        "lower guidance scale", Unguided, "guidance_scale", (9.0, 7.0, 5.0, 3.0, 2.0, 1.5, 1.0), "plan"
    ),
    "interval": RivalKind(
        "limited interval", LimitedInterval, "high", (14.0, 9.0, 5.42, 4.0, 3.0, 2.0, 1.5, 1.0)
    ),
    "cads": RivalKind("CADS", Cads, "noise_scale", (0.025, 0.05, 0.1, 0.15, 0.25, 0.4)),
    "particles": RivalKind(
        "Particle Guidance", ParticleGuidance, "coefficient", (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    ),
    "spell": RivalKind("SPELL", Spell, "radius", (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)),
    "vendi": RivalKind("latent Vendi", LatentVendi, "eta", (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)),
    "ambient": RivalKind(
        "c-VSG", AmbientVendi, "eta", (0.02, 0.05, 0.1, 0.2, 0.4, 0.8), needs=("decode", "encode", "bank")
    ),
    "paper": RivalKind("SPARKE, paper", PaperMode, "eta", (0.01, 0.02, 0.03, 0.04, 0.06, 0.1)),
    "released": RivalKind("SPARKE, released", ReleasedMode, "eta", (0.01, 0.02, 0.03, 0.04, 0.06, 0.1)),
}


def make_rival(name: str, **knobs: Any) -> Rival:
    """The rival of that name with these parameters, or InvalidArgument.

    rival = make_rival("spell", radius=0.4)
    engine = PipelineEngine(pipe, rival.preset(preset), rival)
    """
    if name not in RIVALS:
        raise InvalidArgument(f"no rival {name!r}; there are {', '.join(sorted(RIVALS))}")
    make = RIVALS[name].make
    known = {field.name for field in fields(make)}  # type: ignore[arg-type]  # every rival is a dataclass
    unknown = sorted(set(knobs) - known)
    if unknown:
        raise InvalidArgument(
            f"the rival {name!r} has no parameter {', '.join(unknown)}; it has {', '.join(sorted(known)) or 'none'}"
        )
    missing = [need for need in RIVALS[name].needs if need not in knobs]
    if missing:
        raise InvalidArgument(f"the rival {name!r} needs {', '.join(missing)} too")
    return make(**knobs)
