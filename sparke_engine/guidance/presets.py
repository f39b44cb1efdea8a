"""Presets: every number of the method, by name. A memory's latent space fixes its preset's grid; requests set strength."""

from dataclasses import dataclass, replace
from typing import Literal

from sparke_engine.core.kernels import GaussianPower
from sparke_engine.errors import InvalidArgument
from sparke_engine.guidance.features import FeatureMap

Mode = Literal["paper", "denoised"]


@dataclass(frozen=True)
class DiversityPreset:
    """How latents are pushed apart.

    Attributes:
        mode: `denoised` acts on the predicted clean latents within a window; `paper` is Algorithm 1.
        grid: cells (rows, columns) of the average pooling φ; None is the identity.
        eta: η at strength 1, a fraction of the latents' norm.
        strength_exponent: η(strength) = eta · strength^exponent.
        window: the fraction of the steps, from the first, in which `denoised` acts.
        interval: `paper` acts after every `interval`-th step.
        kappa: κ of the gate m/(m+κ): the mass at which the push has half its size.
        latent_bandwidth: σ_Z.
        prompt_bandwidth: σ_Y.
        power: p of both kernels.
        min_prompt_kernel: ε; entries with k_Y^p below it are no neighbours.
        max_neighbours: above it a sample stands for all neighbours.
        max_push: bound on the total push, the mean over all steps of ‖δ‖/‖x̂0‖.
    """

    mode: Mode = "denoised"
    grid: tuple[int, int] | None = (16, 16)
    eta: float = 1.6
    strength_exponent: float = 1.0
    window: float = 0.2
    interval: int = 10
    kappa: float = 0.1
    latent_bandwidth: float = 0.5
    prompt_bandwidth: float = 0.3
    power: float = 2.0
    min_prompt_kernel: float = 1e-3
    max_neighbours: int = 16384
    max_push: float = 0.5

    def __post_init__(self) -> None:
        positive = {
            "eta": self.eta,
            "strength_exponent": self.strength_exponent,
            "interval": self.interval,
            "kappa": self.kappa,
            "latent_bandwidth": self.latent_bandwidth,
            "prompt_bandwidth": self.prompt_bandwidth,
            "power": self.power,
            "max_neighbours": self.max_neighbours,
            "max_push": self.max_push,
        }
        for name, value in positive.items():
            if not value > 0:
                raise InvalidArgument(f"a preset's {name} is positive, got {value}")
        if not 0 < self.window <= 1:
            raise InvalidArgument(f"a preset's window is a fraction in (0, 1], got {self.window}")
        if not 0 <= self.min_prompt_kernel <= 1:
            raise InvalidArgument(f"a preset's min_prompt_kernel is in [0, 1], got {self.min_prompt_kernel}")

    @property
    def feature_map(self) -> FeatureMap:
        """φ."""
        return FeatureMap(self.grid)

    @property
    def latent_kernel(self) -> GaussianPower:
        """k_Z^p."""
        return GaussianPower(self.latent_bandwidth, self.power)

    @property
    def prompt_kernel(self) -> GaussianPower:
        """k_Y^p."""
        return GaussianPower(self.prompt_bandwidth, self.power)

    def eta_at(self, strength: float) -> float:
        """η(strength) = eta · strength^exponent: increasing, 0 at 0."""
        if not 0 <= strength <= 1:
            raise InvalidArgument(f"a strength is in [0, 1], got {strength}")
        return float(self.eta * strength**self.strength_exponent)

    def with_bandwidths(
        self, latent_bandwidth: float | None, prompt_bandwidth: float | None
    ) -> "DiversityPreset":
        """The preset with the bandwidths that are given in place of its own."""
        return replace(
            self,
            latent_bandwidth=self.latent_bandwidth if latent_bandwidth is None else latent_bandwidth,
            prompt_bandwidth=self.prompt_bandwidth if prompt_bandwidth is None else prompt_bandwidth,
        )


PAPER = DiversityPreset(
    mode="paper", grid=None, eta=0.03, latent_bandwidth=0.8, prompt_bandwidth=0.3, power=2.0, interval=10
)
PRESETS: dict[str, DiversityPreset] = {
    "demo": DiversityPreset(
        grid=(4, 4), eta=3.0, strength_exponent=0.7, window=0.17, latent_bandwidth=0.8, max_push=1.0
    ),
    "toy": DiversityPreset(grid=(4, 4), eta=0.5, window=0.5),
    "sd": DiversityPreset(grid=(16, 16)),
    "sdxl": DiversityPreset(grid=(16, 16)),
    "sd3": DiversityPreset(grid=(16, 16)),
    "paper": PAPER,
}


def preset_named(name: str) -> DiversityPreset:
    """The preset of that name, or InvalidArgument."""
    if name not in PRESETS:
        raise InvalidArgument(f"no diversity preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
