"""The documents of the repository, and the examples in them that tests run."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(path for folder in ("docs", "deploy", "docker") for path in (ROOT / folder).rglob("*.md")),
    ]
)
_EXAMPLE = re.compile(r"<!-- (?:executed|checked): ([\w-]+) -->\n```\w+\n(.*?)```", re.DOTALL)


def read(name: str) -> str:
    """A document of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def examples() -> list[tuple[str, str]]:
    """Every code block of the documents below a comment that names it, with that name."""
    return [found for path in DOCUMENTS for found in _EXAMPLE.findall(path.read_text(encoding="utf-8"))]


def example(name: str) -> str:
    """The one code block of all documents that has this name."""
    found = [code for its_name, code in examples() if its_name == name]
    assert len(found) == 1, f"the documents have {len(found)} examples {name}"
    return found[0]
