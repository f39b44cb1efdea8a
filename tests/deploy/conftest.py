"""What the tests of images, compose file, rules and dashboards share."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile: its word, what follows, and the number of its stage."""

    word: str
    rest: str
    stage: int


def read_dockerfile(path: Path) -> list[Instruction]:
    """The instructions, with comments dropped and continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found, stage = [], -1
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        stage += word == "FROM"
        found.append(Instruction(word, rest.strip(), stage))
    return found


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def dockerfiles() -> dict[str, list[Instruction]]:
    """The instructions of every Dockerfile, by its path in the repository."""
    return {
        str(path.relative_to(ROOT)): read_dockerfile(path)
        for path in sorted((ROOT / "docker").glob("*.Dockerfile"))
    }


@pytest.fixture(scope="session")
def image_environments(dockerfiles) -> dict[str, dict[str, str]]:
    """What each image's last stage sets with ENV, by the Dockerfile's path."""
    environments = {}
    for path, instructions in dockerfiles.items():
        last = instructions[-1].stage
        words = [one.rest for one in instructions if one.word == "ENV" and one.stage == last]
        environments[path] = dict(pair.split("=", 1) for pair in " ".join(words).split())
    return environments
