"""Schedulers in every configuration that changes their algebra, and what each makes of an output by itself.

The tests of schedulers run this file. Nothing here knows how the package reads a scheduler: the oracle of a clean
prediction is the scheduler's own, or a copy of it that is stepped to where no noise is left.
"""

import copy
import inspect
import math
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import diffusers
import torch
from torch import Tensor

SHAPE = (2, 4, 6, 6)
NUM_STEPS = 7
VP, V, X, FLOW = "epsilon", "v_prediction", "sample", "flow_prediction"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
FLOW_SIGMAS = {"use_flow_sigmas": True, "flow_shift": 3.0}
OWN_CLEAN = {
    "CogVideoXDDIM",
    "CogVideoXDPM",
    "DDIM",
    "DDIMParallel",
    "DDPM",
    "DDPMParallel",
    "DPMSolverSDE",
    "EDMEuler",
    "EulerAncestralDiscrete",
    "EulerDiscrete",
    "HeunDiscrete",
    "KDPM2AncestralDiscrete",
    "KDPM2Discrete",
    "LCM",
    "LMSDiscrete",
    "SCM",
}
TWO_CALLS = (
    "HeunDiscrete",
    "KDPM2Discrete",
    "KDPM2AncestralDiscrete",
    "DPMSolverSDE",
    "FlowMatchHeunDiscrete",
)


@dataclass(frozen=True)
class Case:
    """A scheduler's name without `Scheduler`, its prediction type, and what else is configured."""

    short: str
    prediction_type: str | None = VP
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The class name."""
        return f"{self.short}Scheduler"

    def make(self, num_steps: int = NUM_STEPS) -> Any:
        """The scheduler, ready to run."""
        has_betas = not ("FlowMatch" in self.short or "EDM" in self.short or self.short == "SCM")
        config = {**(BETAS if has_betas else {}), **self.more}
        if self.prediction_type is not None:
            config["prediction_type"] = self.prediction_type
        if self.short in {"LMSDiscrete", *TWO_CALLS} and has_betas:
            config |= {"num_train_timesteps": 100}  # they go through all of them when they are made
        if self.short in {"DDIM", "DDPM", "DDIMParallel", "DDPMParallel"}:
            config = {"clip_sample": False} | config
        if self.short == "PNDM":
            config = {"skip_prk_steps": True} | config
        scheduler = getattr(diffusers, self.name)(**config)
        set_timesteps(scheduler, num_steps)
        return scheduler

    def __str__(self) -> str:
        return "-".join(
            [self.short, str(self.prediction_type), *(f"{key}={value}" for key, value in self.more.items())]
        )


def each(short: str, kinds: tuple[str, ...], *configs: dict[str, Any]) -> list[Case]:
    """One case for each prediction type, and one of the first type for each further configuration."""
    return [*(Case(short, kind) for kind in kinds), *(Case(short, kinds[0], more) for more in configs)]


SIGMAS = ({"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True})
SPACINGS = tuple({"timestep_spacing": spacing} for spacing in ("leading", "trailing"))
SHIFTED = {"shift": 3.0}

ALL_CASES = [
    *each("DDIM", (VP, V, X), {"timestep_spacing": "trailing"}, {"set_alpha_to_one": False}),
    Case("DDIM", V, ZERO_SNR),
    *each("DDIMParallel", (VP, V, X)),
    *each("DDPM", (VP, V, X), {"timestep_spacing": "trailing"}, {"variance_type": "fixed_large"}),
    Case("DDPM", V, ZERO_SNR),
    *each("DDPMParallel", (VP, V, X)),
    *each("PNDM", (VP, V), {"skip_prk_steps": False}, {"timestep_spacing": "trailing"}),
    *each("LCM", (VP, V, X), {"original_inference_steps": 100}),
    *each("TCD", (VP, V, X)),
    *each("CogVideoXDDIM", (VP, V, X), {"snr_shift_scale": 1.0}),
    *each("CogVideoXDPM", (VP, V, X), {"timestep_spacing": "trailing"}),
    *each(
        "DPMSolverMultistep",
        (VP, V, X, FLOW),
        {"algorithm_type": "sde-dpmsolver++"},
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_type": "heun"},
        {"use_lu_lambdas": True},
        {"final_sigmas_type": "sigma_min"},
        {"euler_at_final": True},
        FLOW_SIGMAS,
        ZERO_SNR,
        *SIGMAS,
        *SPACINGS,
    ),
    Case("DPMSolverMultistep", V, {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    Case("DPMSolverMultistep", FLOW, FLOW_SIGMAS),
    *each(
        "DPMSolverSinglestep",
        (VP, V, X, FLOW),
        {"algorithm_type": "sde-dpmsolver++"},
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_order": 3, "solver_type": "heun"},
        {"final_sigmas_type": "sigma_min"},
        FLOW_SIGMAS,
        *SIGMAS,
    ),
    *each("DEISMultistep", (VP, V, X), {"solver_order": 1}, {"solver_order": 3}, FLOW_SIGMAS, *SIGMAS),
    Case("DEISMultistep", FLOW, FLOW_SIGMAS),
    *each(
        "UniPCMultistep",
        (VP, V, X, FLOW),
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        {"predict_x0": False, "final_sigmas_type": "sigma_min"},
        {"disable_corrector": [0, 1]},
        ZERO_SNR,
        *SIGMAS,
    ),
    Case("UniPCMultistep", FLOW, FLOW_SIGMAS),
    *each(
        "SASolver",
        (VP, V, X, FLOW),
        {"predictor_order": 3, "corrector_order": 3},
        {"algorithm_type": "noise_prediction"},
        FLOW_SIGMAS,
        *SIGMAS,
    ),
    *each(
        "EulerDiscrete",
        (VP, V, X),
        {"timestep_type": "continuous"},
        {"final_sigmas_type": "sigma_min"},
        ZERO_SNR,
        *SIGMAS,
        *SPACINGS,
    ),
    *each("EulerAncestralDiscrete", (VP, V), ZERO_SNR, *SPACINGS),
    *each("LMSDiscrete", (VP, V, X), *SIGMAS, *SPACINGS),
    *each("HeunDiscrete", (VP, V, X), *SIGMAS, *SPACINGS),
    *each("KDPM2Discrete", (VP, V), *SIGMAS, *SPACINGS),
    *each("KDPM2AncestralDiscrete", (VP, V), *SIGMAS, *SPACINGS),
    *each("DPMSolverSDE", (VP, V), {"noise_sampler_seed": 3, "use_karras_sigmas": True}),
    *each("EDMEuler", (VP, V), {"sigma_schedule": "exponential"}, {"final_sigmas_type": "sigma_min"}),
    *each(
        "EDMDPMSolverMultistep",
        (VP, V),
        {"algorithm_type": "sde-dpmsolver++"},
        {"solver_order": 3},
        {"sigma_schedule": "exponential"},
        {"final_sigmas_type": "sigma_min"},
    ),
    *(
        Case("FlowMatchEulerDiscrete", None, more)
        for more in (
            SHIFTED,
            {"stochastic_sampling": True},
            {"invert_sigmas": True},
            {"shift_terminal": 0.1},
            *SIGMAS,
        )
    ),
    Case("FlowMatchHeunDiscrete", None, SHIFTED),
    Case("FlowMatchLCM", None, SHIFTED),
    Case("SCM", "trigflow"),
]
# torchsde is no dependency: where it is installed, the scheduler that needs it is tested too
CASES = [case for case in ALL_CASES if case.short != "DPMSolverSDE" or find_spec("torchsde") is not None]

ONE_OF_EACH = list({case.name: case for case in reversed(CASES)}.values())[::-1]


def set_timesteps(scheduler: Any, num_steps: int) -> None:
    """As a pipeline does it. Two steps of Sana Sprint have a default of their own in between."""
    more = {} if type(scheduler).__name__ != "SCMScheduler" else {"intermediate_timesteps": None}
    scheduler.set_timesteps(num_steps, **more)


def noise(seed: int) -> Tensor:
    """Standard normal latents."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def start(scheduler: Any) -> Tensor:
    """The latents that a run starts from."""
    return noise(0) * getattr(scheduler, "init_noise_sigma", 1.0)


def timesteps_of(scheduler: Any) -> Tensor:
    """What a pipeline goes through."""
    return scheduler.timesteps[:-1] if type(scheduler).__name__ == "SCMScheduler" else scheduler.timesteps


def model(sample: Tensor, number: int) -> Tensor:
    """A deterministic stand-in for a denoiser, of order 1."""
    return 0.5 * torch.tanh(sample) + 0.5 * noise(1000 + number)


class Caller:
    """Calls `step` as pipelines do: `previous` clean latents and timestep for CogVideoX, a generator where it takes one."""

    def __init__(self, scheduler: Any, seed: int = 3) -> None:
        self.scheduler = scheduler
        self.generator = torch.Generator().manual_seed(seed)
        takes = inspect.signature(type(scheduler).step).parameters
        self._more = {"generator": self.generator} if "generator" in takes else {}
        self._looks_back = "old_pred_original_sample" in takes
        self._previous: tuple[Any, Any] = (None, None)

    def __call__(self, output: Tensor, timestep: Any, sample: Tensor, *, return_dict: bool = False) -> Tensor:
        """The latents after a call."""
        if not self._looks_back:
            result = self.scheduler.step(output, timestep, sample, return_dict=return_dict, **self._more)
            return result.prev_sample if return_dict else result[0]
        clean, at = self._previous
        latents, clean = self.scheduler.step(output, clean, timestep, at, sample, **self._more)
        self._previous = (clean, timestep)
        return latents.to(sample.dtype)


def oracle_clean(scheduler: Any, timestep: Any, sample: Tensor, output: Tensor) -> Tensor:
    """The clean latents that the scheduler itself finds in an output, on a copy of it."""
    twin = _copy(scheduler)
    short = type(twin).__name__.removesuffix("Scheduler")
    if short == "CogVideoXDPM":
        return twin.step(output, None, timestep, None, sample)[1]
    if short in OWN_CLEAN:
        return twin.step(output, timestep, sample, return_dict=False)[1]
    if short == "PNDM":  # a step to where no noise is left
        twin.final_alpha_cumprod = torch.tensor(1.0)
        return twin._get_prev_sample(sample, timestep, -1, output)
    if short == "TCD":  # likewise: with eta = 1 it goes to timestep 0
        twin.alphas_cumprod[0] = 1.0
        return twin.step(output, timestep, sample, eta=1.0, return_dict=False)[1]
    if twin.step_index is None:
        twin._init_step_index(timestep)
    if not short.startswith("FlowMatch"):
        sample = sample.double()  # from the noise that some keep, x̂0 is a difference of large terms
        return _of_solver(twin, sample, twin.convert_model_output(output.double(), sample=sample)).float()
    twin.dt = None  # no second call for a step
    twin.sigmas[twin.step_index + 1] = 1.0 if twin.config.get("invert_sigmas") else 0.0
    return twin.step(output, timestep, sample, return_dict=False)[0]


def _copy(scheduler: Any) -> Any:
    """A copy without guidance, whose step leaves the original alone: all that is changed in place are lists and these two.

    What DPM++ SDE draws its noise from is left out: x̂0 does not depend on it, and it remembers what was drawn.
    """
    twin = copy.copy(scheduler)
    state = vars(twin)
    state.pop("step", None)
    state |= {name: list(value) for name, value in state.items() if isinstance(value, list)}
    state |= {name: state[name].clone() for name in ("alphas_cumprod", "sigmas") if name in state}
    if "noise_sampler" in state:
        twin.noise_sampler = lambda _sigma, _next_sigma: 0.0
    return twin


def _of_solver(twin: Any, sample: Tensor, converted: Tensor) -> Tensor:
    """Clean latents from what a solver keeps: them, or the noise."""
    config = twin.config
    keeps_noise = (
        type(twin).__name__ == "DEISMultistepScheduler"
        or config.get("predict_x0") is False
        or config.get("algorithm_type") == "noise_prediction"
    )
    if not keeps_noise:
        return converted
    alpha, sigma = twin._sigma_to_alpha_sigma_t(twin.sigmas[twin.step_index])
    return (sample - sigma * converted) / alpha


def run(
    scheduler: Any, dtype: torch.dtype = torch.float32, *, return_dict: bool = False, begin: int = 0
) -> list[Tensor]:
    """All latents of a run with the stand-in model, as a pipeline steps; from the `begin`-th timestep on."""
    set_timesteps(scheduler, scheduler.num_inference_steps)
    torch.manual_seed(3)  # noise of schedulers that take no generator
    caller = Caller(scheduler)
    if begin > 0 and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    sample = start(scheduler).to(dtype)
    trail = []
    for number, timestep in enumerate(timesteps_of(scheduler)[begin:]):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, timestep)
        sample = caller(model(sample.float(), number).to(dtype), timestep, sample, return_dict=return_dict)
        trail.append(sample)
    return trail


def noise_level(scheduler: Any, timestep: Any, position: int) -> tuple[float, float]:
    """α and σ of the sample α·x0 + σ·ε that the coming call is made with."""
    short = type(scheduler).__name__.removesuffix("Scheduler")
    if hasattr(scheduler, "alphas_cumprod") and short in {
        *(
            "DDIM",
            "DDPM",
            "DDIMParallel",
            "DDPMParallel",
            "PNDM",
            "LCM",
            "TCD",
            "CogVideoXDDIM",
            "CogVideoXDPM",
        )
    }:
        alpha = float(scheduler.alphas_cumprod[int(timestep)]) ** 0.5
        return alpha, (1 - alpha**2) ** 0.5
    if short == "SCM":
        return math.cos(timestep), math.sin(timestep)
    if short.startswith("FlowMatch"):
        time = float(scheduler.sigmas[position])
        return (time, 1 - time) if scheduler.config.get("invert_sigmas") else (1 - time, time)
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t") and not short.startswith("EDM"):
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[position].double())
        return float(alpha), float(sigma)
    # what it divides the model's input by is √(σ̃² + s²), s the data's deviation
    scale = float(scheduler.scale_model_input(torch.ones(1, dtype=torch.float64), timestep))
    data = scheduler.config.sigma_data if short.startswith("EDM") else 1.0
    return 1.0, (1 / scale**2 - data**2) ** 0.5


def ideal_output(scheduler: Any, timestep: Any, sample: Tensor, position: int) -> Tensor:
    """What a perfect model of images with independent standard normal pixels puts out: E[x0 | z] = α·z / (α² + σ²).

    Under it the exact solution of the flow keeps z/√(α² + σ²), so a difference between two runs neither grows nor
    fades by itself. The output is found from the clean latents by asking the scheduler for those of 0 and of 1.
    """
    alpha, sigma = noise_level(scheduler, timestep, position)
    clean = alpha * sample / (alpha**2 + sigma**2)
    of_zero = oracle_clean(scheduler, timestep, sample, torch.zeros_like(sample))
    slope = oracle_clean(scheduler, timestep, sample, torch.ones_like(sample)) - of_zero
    return (clean - of_zero) / slope


def is_stochastic(case: Case) -> bool:
    """Whether noise is drawn on the way."""
    always = {"DDPM", "DDPMParallel", "LCM", "TCD", "CogVideoXDPM", "SASolver", "EulerAncestralDiscrete"}
    always |= {"KDPM2AncestralDiscrete", "DPMSolverSDE", "FlowMatchLCM", "SCM"}
    chosen = case.more.get("algorithm_type", "").startswith("sde") or "stochastic_sampling" in case.more
    return case.short in always or chosen


def length_of_unit(case: Case, angle: float) -> float:
    """1/√(α² + σ²) at an angle of noise: α² + σ² = 1, or α = 1, or under flow matching α + σ = 1."""
    if case.short.startswith("FlowMatch"):
        return math.cos(angle) + math.sin(angle)
    is_exploding = "EDM" in case.short or case.short in {
        "EulerDiscrete",
        "EulerAncestralDiscrete",
        "LMSDiscrete",
        *TWO_CALLS,
    }
    return math.cos(angle) if is_exploding else 1.0


def ideal_run(scheduler: Any, num_steps: int, around: Any) -> tuple[Tensor, list[float]]:
    """The final latents in float64 under the perfect model, within `around`, and the angle of noise arctan(σ/α) of each call."""
    set_timesteps(scheduler, num_steps)
    torch.manual_seed(3)  # noise of schedulers that take no generator
    caller, sample, angles = Caller(scheduler), start(scheduler).double(), []
    with around:
        for position, timestep in enumerate(timesteps_of(scheduler)):
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(sample, timestep)
            alpha, sigma = noise_level(scheduler, timestep, position)
            angles.append(math.atan2(sigma, alpha))
            output = ideal_output(scheduler, timestep, sample, position)
            sample = caller(output, timestep, sample).double()
    return sample, angles
