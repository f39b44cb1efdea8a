"""The arithmetic of docs/capacity.md: its formulas give its table, from figures that stand where it says."""

import re

import pytest

from tests.documents import example


@pytest.fixture(scope="module")
def document(root):
    """The page."""
    return (root / "docs" / "capacity.md").read_text(encoding="utf-8")


def test_the_example_is_what_the_formulas_give(document):
    """Each value of the table, to the digits that it has."""
    computed: dict[str, float] = {}
    exec(example("capacity"), computed)  # noqa: S102 - the page's own code
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d.,]+) \|$", document, re.MULTILINE)
    assert len(rows) == 20
    for name, shown in rows:
        digits = len(re.sub(r"\D", "", shown).lstrip("0"))
        assert float(f"{computed[name]:.{digits}g}") == float(shown.replace(",", "")), name


@pytest.mark.parametrize(
    ("page", "figures"),
    [
        ("evaluation.md", ["| SDXL's size | 0 | 2919.8 |", "20 steps", "request of four images"]),
        (
            "scale.md",
            [
                "| host memory, bytes an entry | 2,777 |",
                "| 3,234 |",
                "3,072 bytes",
                "reading the memory, s | 43.8",
                "| 45.6 | 7.5 |",
            ],
        ),
        ("service.md", ["22 a job", "| 16 | 64 |", "| API, resident, MiB | 96.4 | 96.9 |"]),
    ],
)
def test_figures_stand_where_the_page_says(root, page, figures):
    """A measurement that is made anew changes this page too."""
    text = (root / "docs" / page).read_text(encoding="utf-8")
    assert [figure for figure in figures if figure not in text] == []


def test_figures_of_the_head_are_those_of_the_formulas(document):
    """What was measured is what is computed with."""
    assert abs(2919.8 / 4 / 20 / 1000 - 0.0365) < 0.00005
    assert 3_234 - 3_072 == 162
    for number in ("0.0365", "+ 162", "8_010", "5_379", "2_777", "* 22", "44e-6"):
        assert number in document
