"""Every rival by name, with the parameter that a benchmark sweeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
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

ETAS: Final = (0.01, 0.02, 0.03, 0.06, 0.1, 0.2, 0.4)
INTERVALS: Final = {"interval": (1, 2, 5, 10)}  # 10 is for 50 steps; for 12 steps the same share is 2


@dataclass(frozen=True)
class RivalKind:
    """How to make a rival, and how to sweep it.

    Attributes:
        title: its name in tables.
        make: its class.
        knob: the parameter that makes it stronger or weaker.
        values: a sweep of the knob, from weak to strong.
        knob_of: whether the knob is the rival's own or the denoising plan's.
        others: further parameters that matter, with values worth trying.
        needs: what a caller has to give beside the knob.
    """

    title: str
    make: Callable[..., Rival]
    knob: str
    values: tuple[float, ...]
    knob_of: Literal["rival", "plan"] = "rival"
    others: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


RIVALS: Final[Mapping[str, RivalKind]] = {
    "cfg": RivalKind(
        "lower guidance scale", Unguided, "guidance_scale", (9.0, 7.0, 5.0, 3.0, 2.0, 1.5, 1.0), "plan"
    ),
    "interval": RivalKind(
        "limited interval",
        LimitedInterval,
        "high",
        (9.0, 5.42, 4.0, 2.5, 2.0, 1.5, 1.0, 0.5),
        others={"low": (0.0, 0.28, 0.6)},
    ),
    "cads": RivalKind(
        "CADS",
        Cads,
        "tau1",
        (0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.3),
        others={"noise_scale": (0.1, 0.25, 1.0), "mixing": (0.0, 0.5, 1.0), "tau2": (0.9, 1.0)},
    ),
    "particles": RivalKind(
        "Particle Guidance", ParticleGuidance, "coefficient", (10.0, 30.0, 100.0, 300.0, 1000.0)
    ),
    "spell": RivalKind("SPELL", Spell, "radius", (0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)),
    "vendi": RivalKind(
        "latent Vendi", LatentVendi, "eta", (0.1, 0.2, 0.4, 0.8, 1.6), others={"window": (0.25, 0.5, 1.0)}
    ),
    "ambient": RivalKind(
        "c-VSG",
        AmbientVendi,
        "eta",
        (0.1, 0.2, 0.4, 0.8, 1.6),
        others={"window": (0.25, 0.5, 1.0)},
        needs=("decode", "encode", "bank"),
    ),
    "paper": RivalKind("SPARKE, paper", PaperMode, "eta", ETAS, others=INTERVALS),
    "released": RivalKind("SPARKE, released", ReleasedMode, "eta", ETAS, others=INTERVALS),
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
