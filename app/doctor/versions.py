"""What is checked of Python and of the packages: their versions against the ranges of this package's own metadata."""

import platform
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from app.doctor.finding import Finding, ok, problem, warning

_PACKAGE = "sparke"
_WORKERS_EXTRAS = ("engine", "worker")
_SHOWN = ("redis", "torch", "diffusers", "transformers", "faiss-cpu")

Installed = Callable[[str], str | None]


def examine_versions() -> list[Finding]:
    """Python and packages as they are here."""
    try:
        needs = [Requirement(text) for text in requires(_PACKAGE) or ()]
        python = SpecifierSet(metadata(_PACKAGE)["Requires-Python"] or "")
    except PackageNotFoundError:
        return [
            warning(
                "versions",
                "this is not installed as a package, so its ranges are unknown",
                "pip install . in its folder",
            )
        ]
    return [judge_python(platform.python_version(), python), *judge_packages(needs, installed_version)]


def installed_version(name: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def judge_python(found: str, wanted: SpecifierSet) -> Finding:
    """The Python that runs this."""
    if wanted.contains(found, prereleases=True):
        return ok("python", f"{found} (wanted {wanted})")
    return problem("python", f"{found}, wanted {wanted}", "make a virtual environment with such a Python")


def judge_packages(needs: Iterable[Requirement], installed: Installed) -> list[Finding]:
    """Each package that is missing or out of its range, else one line for all. A worker's count where torch is installed."""
    needs = list(needs)
    wanted = [need for need in needs if _holds(need, "")]
    has_torch = installed("torch") is not None
    if has_torch:
        wanted += [need for need in needs if _is_workers(need) and need not in wanted]
    faults = [fault for need in wanted if (fault := _fault_of(need, installed)) is not None]
    if faults:
        return faults
    shown = [f"{name} {found}" for name in _SHOWN if (found := installed(name)) is not None]
    rest = "" if has_torch else "; no torch, so this machine can run an API and no worker"
    return [ok("packages", f"all within their ranges: {', '.join(shown)}{rest}")]


def _is_workers(need: Requirement) -> bool:
    return need.name != _PACKAGE and any(_holds(need, extra) for extra in _WORKERS_EXTRAS)


def _fault_of(need: Requirement, installed: Installed) -> Finding | None:
    found = installed(need.name)
    advice = f"pip install '{need.name}{need.specifier}'"
    if found is None:
        return problem("packages", f"{need.name} is not installed, wanted {need.specifier}", advice)
    if not need.specifier.contains(found, prereleases=True):
        return problem("packages", f"{need.name} is {found}, wanted {need.specifier}", advice)
    return None


def _holds(need: Requirement, extra: str) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": extra})
