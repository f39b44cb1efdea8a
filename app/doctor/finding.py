"""What a check finds: how it stands, in one line what was seen, and in one line what to do."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from app.redis.sentinel_url import is_sentinel_url, shown_sentinel_url


class State(StrEnum):
    """How a check stands. Only a problem keeps the service from working as it should."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `advice` says what to do, and is empty where there is nothing."""

    check: str
    state: State
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well, or there is nothing to check; `found` says which."""
    return Finding(check, State.OK, _one_line(found))


def warning(check: str, found: str, advice: str) -> Finding:
    """The service works, but not as one would expect, or not for long."""
    return Finding(check, State.WARNING, _one_line(found), _one_line(advice))


def problem(check: str, found: str, advice: str) -> Finding:
    """The service does not start, or loses what it acknowledged."""
    return Finding(check, State.PROBLEM, _one_line(found), _one_line(advice))


def has_problem(findings: Sequence[Finding]) -> bool:
    """Whether anything must be mended."""
    return any(finding.state is State.PROBLEM for finding in findings)


def as_text(findings: Sequence[Finding]) -> str:
    """A line for each finding, and a second one where there is something to do."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<7}  {finding.check:<{width}}  {finding.found}")
        if finding.advice:
            lines.append(f"{'':<{9 + width}}  → {finding.advice}")
    return "\n".join([*lines, _sum(findings)])


def as_json(findings: Sequence[Finding]) -> str:
    """The same for machines."""
    counts = {f"num_{state}": _count(findings, state) for state in State}
    return json.dumps({**counts, "checks": [asdict(finding) for finding in findings]}, ensure_ascii=False)


def shown_url(url: str) -> str:
    """A URL without what may be secret in it: user, password and query."""
    if is_sentinel_url(url):
        return shown_sentinel_url(url)
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def shown_bytes(num_bytes: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.3g} {unit}" if num_bytes < 1000 else f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} TiB" if num_bytes < 1000 else f"{num_bytes:.0f} TiB"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _count(findings: Sequence[Finding], state: State) -> int:
    return sum(finding.state is state for finding in findings)


def _sum(findings: Sequence[Finding]) -> str:
    num_problems, num_warnings = (_count(findings, state) for state in (State.PROBLEM, State.WARNING))
    return f"{len(findings)} checks: problems {num_problems}, warnings {num_warnings}"
