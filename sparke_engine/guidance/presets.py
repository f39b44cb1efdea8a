"""Presets: every number of the method, by name. A memory's latent space fixes its preset's grid; requests set strength."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from sparke_engine.core.domains import check_counts, check_positive
from sparke_engine.core.kernels import CosinePower, GaussianPower, KernelPower, check_bandwidth
from sparke_engine.errors import InvalidArgument
from sparke_engine.guidance.features import FeatureMap

Mode = Literal["paper", "released", "denoised"]
KernelName = Literal["gaussian", "cosine"]
ObjectiveName = Literal["rke", "vendi"]

MAX_NEIGHBOURS = 256


@dataclass(frozen=True)
class DiversityPreset:
    """How latents are pushed apart.

    Attributes:
        mode: `denoised` acts on the predicted clean latents within a window; `paper` is Algorithm 1; `released` is the
            step of the authors' published code.
        objective: what pushes raise, RKE or Vendi, see `objectives.py`; `released` knows RKE only.
        kernel: k_Z and k_Y; a cosine kernel has no bandwidth.
        conditional: entries count by the nearness of their prompts (Cond-RKE, Cond-Vendi); else all alike.
        grid: cells (rows, columns) of the average pooling φ; None is the identity.
        eta: η at strength 1, the size of a push in norms of the latents; in runs that leave the first timesteps out,
            `denoised` has the share of it that `schedule.open_share` says.
        strength_exponent: η(strength) = eta · strength^exponent, and λ(strength) likewise.
        window: the fraction of the steps, from the first, in which `denoised` pushes.
        relax: λ at strength 1: where images are near, `denoised` lowers a guidance scale s > 1 to s^(1−λ), in every step.
        interval: `paper` acts after every `interval`-th step, `released` before the first of every `interval` steps.
        kappa: κ of the gate m/(m+κ): the mass at which η and λ have half their size.
        latent_bandwidth: σ_Z.
        prompt_bandwidth: σ_Y.
        power: p of both kernels in RKE; Vendi is of the kernels themselves.
        min_prompt_kernel: ε; entries with k_Y^p below it are no neighbours, k_Y Gaussian whatever `kernel` is. 0 takes all,
            as a preset must that is not conditional, or whose kernel is cosine.
        max_neighbours: above it a sample stands for all neighbours: another one for every version of the memory, since
            what is read anew keeps images of equal seeds apart, and a whole memory does not.
        max_spectral_entries: above it a sample stands for all in a spectrum, whose cost grows with the third power.
        reference_eta: η at the weight 1 of novelty or context in mode `denoised`, the size of their push.
        reference_window: the fraction of the steps, from the first, in which they push.
        reference_bandwidth: σ of the Gaussian kernel by which a reference's images are near, in all objectives.
        max_reference_entries: above it a sample stands for all of a reference. What leads there are the nearest images, not
            a mean, so it is large.
        max_push: bound on the total push, the mean over all steps of `Push.relative`; relaxation is not counted. Mode
            `released`, as published, knows no such bound, and counts every entry once, whatever its weight.
    """

    mode: Mode = "denoised"
    objective: ObjectiveName = "rke"
    kernel: KernelName = "gaussian"
    conditional: bool = True
    grid: tuple[int, int] | None = (16, 16)
    eta: float = 1.6
    strength_exponent: float = 1.0
    window: float = 0.2
    relax: float = 0.0
    interval: int = 10
    kappa: float = 0.1
    latent_bandwidth: float = 0.5
    prompt_bandwidth: float = 0.3
    power: float = 2.0
    min_prompt_kernel: float = 1e-3
    max_neighbours: int = MAX_NEIGHBOURS
    max_spectral_entries: int = 256
    reference_eta: float = 0.5
    reference_window: float = 0.3
    reference_bandwidth: float = 0.3
    max_reference_entries: int = 16_384
    max_push: float = 0.5

    def __post_init__(self) -> None:
        check_positive(
            "a preset",
            eta=self.eta,
            strength_exponent=self.strength_exponent,
            kappa=self.kappa,
            power=self.power,
            reference_eta=self.reference_eta,
            max_push=self.max_push,
        )
        check_bandwidth(
            "a preset",
            latent_bandwidth=self.latent_bandwidth,
            prompt_bandwidth=self.prompt_bandwidth,
            reference_bandwidth=self.reference_bandwidth,
        )
        check_counts(
            "a preset",
            interval=self.interval,
            max_neighbours=self.max_neighbours,
            max_spectral_entries=self.max_spectral_entries,
            max_reference_entries=self.max_reference_entries,
        )
        for name, value in {"window": self.window, "reference_window": self.reference_window}.items():
            if not 0 < value <= 1:
                raise InvalidArgument(f"a preset's {name} is a fraction in (0, 1], got {value}")
        for name, value in {"relax": self.relax, "min_prompt_kernel": self.min_prompt_kernel}.items():
            if not 0 <= value <= 1:
                raise InvalidArgument(f"a preset's {name} is in [0, 1], got {value}")
        self._check_objective()

    def _check_objective(self) -> None:
        for name, known in {"mode": Mode, "objective": ObjectiveName, "kernel": KernelName}.items():
            if getattr(self, name) not in get_args(known):
                raise InvalidArgument(
                    f"a preset's {name} is one of {', '.join(get_args(known))}, got {getattr(self, name)!r}"
                )
        if self.mode == "released" and self.objective != "rke":
            raise InvalidArgument(
                f"mode released has the objective rke alone, got {self.objective!r}: take mode denoised or paper"
            )
        if not (self.conditional and self.kernel == "gaussian") and self.min_prompt_kernel > 0:
            raise InvalidArgument(
                "a preset that is not conditional, or whose kernel is cosine, takes all entries: its min_prompt_kernel "
                f"is 0, got {self.min_prompt_kernel}"
            )
        if self.kernel == "cosine" and self.power != int(self.power):
            raise InvalidArgument(f"the power of a cosine kernel is a whole number, got {self.power}")
        if self.kernel == "cosine" and self.conditional and self.objective == "rke" and self.power % 2 == 1:
            raise InvalidArgument(
                f"at an odd power images of opposite prompts would attract; a conditional cosine preset has an even "
                f"power, got {self.power}"
            )

    @property
    def feature_map(self) -> FeatureMap:
        """φ."""
        return FeatureMap(self.grid)

    @property
    def latent_kernel(self) -> KernelPower:
        """k_Z^p."""
        return self.kernel_of_power(self.power)

    @property
    def prompt_kernel(self) -> KernelPower:
        """k_Y^p."""
        return self.prompt_kernel_of_power(self.power)

    def kernel_of_power(self, power: float) -> KernelPower:
        """k_Z to another power than p."""
        if self.kernel == "cosine":
            return CosinePower(power)
        return GaussianPower(self.latent_bandwidth, power)

    def prompt_kernel_of_power(self, power: float) -> KernelPower:
        """k_Y to another power than p."""
        if self.kernel == "cosine":
            return CosinePower(power)
        return GaussianPower(self.prompt_bandwidth, power)

    @property
    def reference_kernel(self) -> GaussianPower:
        """The kernel k^p between an image and those of a reference."""
        return GaussianPower(self.reference_bandwidth, self.power)

    def eta_at(self, strength: float) -> float:
        """η(strength) = eta · strength^exponent: increasing, 0 at 0."""
        return self.eta * self._share(strength)

    def relax_at(self, strength: float) -> float:
        """λ(strength) = relax · strength^exponent: increasing, 0 at 0."""
        return self.relax * self._share(strength)

    def _share(self, strength: float) -> float:
        if not 0 <= strength <= 1:
            raise InvalidArgument(f"a strength is in [0, 1], got {strength}")
        return float(strength**self.strength_exponent)

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
    mode="paper",
    grid=None,
    eta=0.03,
    latent_bandwidth=0.8,
    prompt_bandwidth=0.3,
    power=2.0,
    interval=10,
    max_neighbours=16_384,  # as published, all
)
RELEASED = replace(PAPER, mode="released", min_prompt_kernel=0.0, max_push=10.0)
DEMO = DiversityPreset(
    grid=(2, 2),
    eta=2.0,
    strength_exponent=0.5,
    window=0.25,
    relax=1.0,
    latent_bandwidth=0.8,
    max_push=1.0,
    reference_eta=0.8,
    reference_window=0.5,
)
PRESETS: dict[str, DiversityPreset] = {
    "demo": DEMO,
    "demo-fine": replace(
        DEMO, grid=(16, 16), eta=1.0
    ),  # memories of it hold shapes, and references lead by them
    "toy": DiversityPreset(grid=(4, 4), eta=0.5, window=0.5),
    "sd": DiversityPreset(grid=(16, 16)),
    "sdxl": DiversityPreset(grid=(16, 16)),
    "sd3": DiversityPreset(grid=(16, 16)),
    # Guesses: no model of these families was tuned on, only their grids fit their latents. A video's frames are channels.
    "flux": DiversityPreset(grid=(16, 16)),
    "pixart": DiversityPreset(grid=(16, 16)),
    "sana": DiversityPreset(grid=(8, 8)),
    "kandinsky": DiversityPreset(grid=(16, 16)),
    "dit": DiversityPreset(grid=(16, 16)),
    "video": DiversityPreset(grid=(8, 8)),
    "paper": PAPER,
    "released": RELEASED,
}


def preset_named(name: str) -> DiversityPreset:
    """The preset of that name, or InvalidArgument."""
    if name not in PRESETS:
        raise InvalidArgument(f"no diversity preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
