"""The rivals of SPARKE behind one interface, from their papers' formulas, for evaluation."""

from sparke_engine.baselines.ambient import AmbientVendi, decoder_of
from sparke_engine.baselines.cads import Cads
from sparke_engine.baselines.guidance_scale import LimitedInterval, Unguided
from sparke_engine.baselines.modes import PaperMode, ReleasedMode
from sparke_engine.baselines.particles import ParticleGuidance
from sparke_engine.baselines.registry import RIVALS, RivalKind, make_rival
from sparke_engine.baselines.rival import Rival
from sparke_engine.baselines.spell import Spell
from sparke_engine.baselines.vendi import LatentVendi

__all__ = [
    "RIVALS",
    "AmbientVendi",
    "Cads",
    "LatentVendi",
    "LimitedInterval",
    "PaperMode",
    "ParticleGuidance",
    "ReleasedMode",
    "Rival",
    "RivalKind",
    "Spell",
    "Unguided",
    "decoder_of",
    "make_rival",
]
