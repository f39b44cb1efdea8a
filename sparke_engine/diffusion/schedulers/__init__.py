"""What each scheduler of diffusers makes of a model's output, and how its calls make up steps."""

from sparke_engine.diffusion.schedulers.counting import Place, StepCounter
from sparke_engine.diffusion.schedulers.kind import SchedulerKind
from sparke_engine.diffusion.schedulers.noise import NoiseLevel
from sparke_engine.diffusion.schedulers.prediction import CleanPrediction
from sparke_engine.diffusion.schedulers.registry import (
    KINDS,
    SchedulerAdapter,
    adapter_for,
    noise_level,
    supported_schedulers,
)

__all__ = [
    "KINDS",
    "CleanPrediction",
    "NoiseLevel",
    "Place",
    "SchedulerAdapter",
    "SchedulerKind",
    "StepCounter",
    "adapter_for",
    "noise_level",
    "supported_schedulers",
]
