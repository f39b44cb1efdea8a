"""The documents say what is so: links lead somewhere, what is named exists, and the index has every page."""

import ast
import re
import runpy
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest

from app.settings import Settings
from tests.documents import DOCUMENTS, ROOT, examples, read


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path):
    """Every link within the repository names a file that exists, and a heading of it if it names one."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        there = path if not name else (path.parent / name).resolve()
        if not there.exists() or (anchor and anchor not in headings(there)):
            broken.append(target)
    assert broken == []


def test_the_readme_is_a_front_door():
    """It is read in a few minutes, and has the two commands that everybody begins with."""
    text = read("README.md")
    assert len(text.splitlines()) <= 230
    for command in ("make serve", "make test"):
        assert f"```sh\n{command}\n```" in text


def test_the_index_has_every_page():
    """`docs/README.md` links to each page of docs and of its guide, and says in a line what is in it."""
    pages = {path for folder in ("docs", "docs/guide") for path in (ROOT / folder).glob("*.md")}
    rows = re.findall(r"^\| \[[^\]]+\]\(([^)#]+)\) \| \S.* \|$", read("docs/README.md"), re.MULTILINE)
    linked = Counter((ROOT / "docs" / row).resolve() for row in rows)
    assert sorted(path.name for path in pages - {ROOT / "docs/README.md"} - set(linked)) == []
    assert [path.name for path, number in linked.items() if number > 1] == []


def test_every_example_has_one_name_and_a_test():
    """No two examples have the same name, and each that says it is run or checked is."""
    names = Counter(name for name, _ in examples())
    assert [name for name, number in names.items() if number > 1] == []
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert set(names) == set(re.findall(r'\bexample\("([\w-]+)"\)', tests))


def headings(path: Path) -> set[str]:
    """The anchors that a Markdown file offers."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_named_exists(path: Path):
    """Every file, test, setting and make target that a document names is there."""
    text = path.read_text(encoding="utf-8")
    missing = []
    for name in re.findall(
        r"`((?:app|sparke_engine|tests|docs|deploy|docker|benchmarks|\.ci)/[\w./:-]+)`", text
    ):
        file, _, test = name.partition("::")
        if not (ROOT / file).exists() or (test and test not in functions(ROOT / file)):
            missing.append(name)
    settings = {f"SPARKE_{name.upper()}" for name in Settings.model_fields}
    settings |= set(re.findall(r"\$\{(SPARKE_[A-Z_]+)", read("docker-compose.yml")))
    settings |= set(re.findall(r'envvar="(SPARKE_[A-Z_]+)"', read("app/cli.py")))
    missing += [name for name in re.findall(r"\bSPARKE_[A-Z_]*[A-Z]\b", text) if name not in settings]
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    missing += [
        f"make {name}"
        for name in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)
        if name not in targets
    ]
    assert missing == []


def functions(path: Path) -> set[str]:
    """The names of a file's functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("page", ["configuration", "logs", "metrics", "schedulers"])
def test_a_written_page_is_current(page: str):
    """`make docs` would change nothing."""
    written = runpy.run_path(str(ROOT / "docs" / f"write_{page}.py"))["render"]()
    assert read(f"docs/{page}.md") == written
