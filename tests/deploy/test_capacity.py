"""The arithmetic of docs/capacity.md: its formulas give its table, from figures that stand where it says."""

import json
import re

import pytest
from model_memory import rows_of

from tests.documents import example


@pytest.fixture(scope="module")
def document(root):
    """The page."""
    return (root / "docs" / "capacity.md").read_text(encoding="utf-8")


def _computed(number):
    """The formulas with the numbers of an example."""
    numbers = {1: example("capacity-small"), 2: example("capacity-large")}[number]
    computed: dict[str, float] = {}
    exec(numbers + example("capacity"), computed)  # noqa: S102 - the page's own code
    return computed


def _is_shown(value, shown):
    digits = len(re.sub(r"\D", "", shown).lstrip("0"))
    return float(f"{value:.{digits}g}") == float(shown.replace(",", ""))


@pytest.mark.parametrize("number", [1, 2])
def test_the_examples_are_what_the_formulas_give(document, number):
    """Each value of the table, to the digits that it has."""
    computed = _computed(number)
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d.,]+) \| ([\d.,]+) \|$", document, re.MULTILINE)
    assert len(rows) == 27
    for name, *shown in rows:
        assert _is_shown(computed[name], shown[number - 1]), name


def test_the_list_of_machines_is_what_the_formulas_give(document):
    """What the second example buys, in words."""
    (told,) = re.findall(r"\*\*What example 2 buys\*\*(.*?)\n\n", document, re.DOTALL)
    computed = _computed(2)
    for name, words in {
        "workers": r"(\d+) GPUs with",
        "device_gb": r"GPUs with ([\d.]+) GB",
        "machines": r"so (\d+) machines",
        "machine_ram_gib": r"each with (\d+) GiB",
        "api_replicas": r"(\d+) replicas",
        "ram_gb": r"a machine of (\d+) GB",
        "disk_gb": r"a disk of (\d+) GB",
        "stored_tb": r"up to (\d+) TB",
    }.items():
        assert _is_shown(computed[name], re.findall(words, told)[0]), name
    assert _is_shown(computed["api_mbit_a_second"] / 1000, re.findall(r"([\d.]+) Gbit/s", told)[0])


def test_what_a_model_needs_is_what_was_measured(document, root):
    """The rows of the benchmark, and of SDXL the numbers that the formulas take from it."""
    measured = json.loads((root / "docs" / "figures" / "model-memory.json").read_text())
    assert [row for found in measured for row in rows_of(found) if row not in document] == []
    phases = {phase["phase"]: phase for phase in measured[0]["phases"]}
    one, eight = phases["images: 1"], phases["images: 8"]
    rest_s = eight["seconds"] - measured[0]["steps"] * eight["step_s"] - eight["decode_s"]
    assert f"took {eight['seconds']:.2f} s, {rest_s:.2f} of them" in document
    host = [measured[0]["most"][f"images: {number}"]["anonymous"] for number in (1, 8)]
    computed = _computed(1)
    for name, value in {
        "seconds_a_step": eight["step_s"] / 8,
        "seconds_to_decode": eight["decode_s"] / 8,
        "device_one_gb": one["peak_bytes"] / 1e9,
        "device_more_gb": (eight["peak_bytes"] - one["peak_bytes"]) / 7e9,
        "host_one_gb": host[0] / 1e9,
        "host_more_gb": (host[1] - host[0]) / 7e9,
        "largest_file_gb": 4 * measured[0]["parameters"]["unet"] / 1e9,
    }.items():
        assert _is_shown(value, str(computed[name])), name


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
    for number in ("36.5 ms", "+ 162", "8_010", "5_379", "2_777", "* 22", "44e-6"):
        assert number in document
