"""Resident memory of a process, as Linux tells it."""

from pathlib import Path

_FIELDS = {"VmHWM": "rss_peak", "VmRSS": "rss", "RssAnon": "anonymous", "RssFile": "of_files"}


def resident_bytes(pid: int | str) -> dict[str, int]:
    """What is resident now, in parts, and the most that ever was; nothing where the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines)
    return {_FIELDS[key]: 1024 * int(value.split()[0]) for key, value in pairs if key in _FIELDS}


def note_most(most: dict[str, int], seen: dict[str, int]) -> None:
    """The most of each part so far."""
    for part, size_bytes in seen.items():
        most[part] = max(size_bytes, most.get(part, 0))
