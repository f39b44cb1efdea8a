"""What is checked of the device: whether torch sees what SPARKE_DEVICE asks for."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from app.doctor.finding import Finding, State, ok, problem, shown_bytes, warning
from app.settings import Settings

_DRIVER = Path("/proc/driver/nvidia/version")
_LEAST_FREE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Gpu:
    """A CUDA device as torch sees it."""

    name: str
    free_bytes: int
    all_bytes: int


@dataclass(frozen=True, slots=True)
class TorchFacts:
    """What torch says. `built_for` is its CUDA version, None for a build without; `fault` is why it sees no GPU."""

    version: str
    built_for: str | None
    gpus: tuple[Gpu, ...] = ()
    fault: str | None = None
    has_mps: bool = False


def examine_device(settings: Settings) -> Finding:
    """The device of a worker on this machine."""
    try:
        facts = read_torch() if find_spec("torch") is not None else None
    except (ImportError, OSError) as error:
        return problem(
            "device", f"torch cannot be loaded: {error}", "install it again, with all that it needs"
        )
    return judge_devices(settings.devices, facts, has_driver=_DRIVER.exists())


def read_torch() -> TorchFacts:
    """Loads torch and asks it."""
    import torch  # noqa: PLC0415 - an API machine has none

    built_for, has_mps = torch.version.cuda, torch.backends.mps.is_available()
    try:
        if built_for is not None:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        gpus = tuple(
            Gpu(torch.cuda.get_device_name(index), *torch.cuda.mem_get_info(index))
            for index in range(torch.cuda.device_count() if built_for is not None else 0)
        )
    except RuntimeError as error:  # no driver, one that is too old, or no device
        return TorchFacts(torch.__version__, built_for, fault=str(error), has_mps=has_mps)
    return TorchFacts(torch.__version__, built_for, gpus, has_mps=has_mps)


def judge_devices(wanted: Sequence[str], facts: TorchFacts | None, *, has_driver: bool) -> Finding:
    """All of them, if all are well; else the worst."""
    told = [judge_device(one, facts, has_driver=has_driver) for one in wanted]
    worst = max(told, key=lambda one: list(State).index(one.state))
    return (
        worst
        if worst.state is not State.OK
        else ok("device", "; ".join(dict.fromkeys(one.found for one in told)))
    )


def judge_device(wanted: str, facts: TorchFacts | None, *, has_driver: bool) -> Finding:
    """The device that would be taken."""
    if facts is None:
        return ok("device", "not looked for: torch is not installed, so no worker can run here")
    if wanted.startswith("cuda"):
        return _judge_cuda(wanted, facts, has_driver=has_driver)
    if wanted == "mps" and not facts.has_mps:
        return problem(
            "device", f"SPARKE_DEVICE is mps, and torch {facts.version} has none", "set SPARKE_DEVICE to auto"
        )
    if wanted == "auto" and facts.gpus:
        return _judge_memory(wanted, facts.gpus[0], facts, more=_others(facts))
    if wanted == "auto" and has_driver:
        return warning(
            "device",
            f"this machine has NVIDIA's driver, and {_unseen(facts)}: a worker would run on the CPU",
            _cure(facts, has_driver=True),
        )
    taken = ("mps" if facts.has_mps else "cpu") if wanted == "auto" else wanted
    return ok("device", f"SPARKE_DEVICE is {wanted}: torch {facts.version} runs on {taken}")


def _judge_cuda(wanted: str, facts: TorchFacts, *, has_driver: bool) -> Finding:
    number = int(wanted.partition(":")[2] or 0)
    if not facts.gpus:
        return problem(
            "device", f"SPARKE_DEVICE is {wanted}, and {_unseen(facts)}", _cure(facts, has_driver=has_driver)
        )
    if number >= len(facts.gpus):
        return problem(
            "device",
            f"SPARKE_DEVICE is {wanted}, and torch sees {len(facts.gpus)} GPUs: cuda:0 to cuda:{len(facts.gpus) - 1}",
            "give the number of one of them, or CUDA_VISIBLE_DEVICES",
        )
    return _judge_memory(wanted, facts.gpus[number], facts)


def _others(facts: TorchFacts) -> str:
    if len(facts.gpus) == 1:
        return ""
    every = ",".join(f"cuda:{number}" for number in range(len(facts.gpus)))
    return f"; the first of {len(facts.gpus)} GPUs: with SPARKE_DEVICE={every} `sparke serve` runs a worker on each"


def _judge_memory(wanted: str, gpu: Gpu, facts: TorchFacts, *, more: str = "") -> Finding:
    found = (
        f"SPARKE_DEVICE is {wanted}: {gpu.name}, {shown_bytes(gpu.free_bytes)} of {shown_bytes(gpu.all_bytes)} free,"
        f" torch {facts.version} for CUDA {facts.built_for}{more}"
    )
    if gpu.free_bytes < _LEAST_FREE_SHARE * gpu.all_bytes:
        return warning(
            "device", found, "look with nvidia-smi who has the rest, unless it is this service's own worker"
        )
    return ok("device", found)


def _unseen(facts: TorchFacts) -> str:
    if facts.built_for is None:
        return f"torch {facts.version} is a build without CUDA"
    return f"torch {facts.version} for CUDA {facts.built_for} sees no GPU" + (
        f" ({facts.fault})" if facts.fault else ""
    )


def _cure(facts: TorchFacts, *, has_driver: bool) -> str:
    if facts.built_for is None:
        return "install a build of torch for CUDA (pytorch.org names its index), or set SPARKE_DEVICE to cpu"
    if not has_driver:
        return (
            "install NVIDIA's driver, give the container its GPUs (--gpus all), or set SPARKE_DEVICE to cpu"
        )
    return (
        f"install a driver for CUDA {facts.built_for} or newer (nvidia-smi shows what it is for), or a torch for an older"
        " CUDA; see that CUDA_VISIBLE_DEVICES hides nothing"
    )
