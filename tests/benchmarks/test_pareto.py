"""What a sweep's tables hold against one another: which arms are ours to give, which are a rival's best, and what wins."""

import json
from dataclasses import replace

import pytest
import torch
from figures import Figures
from pareto import Measured, best_rivals, comparisons, short_table


def arm(name: str, accuracy: float, vendi: float) -> Measured:
    """An arm of eight prompts that are alike."""
    values = [torch.full((8,), value, dtype=torch.float64) for value in (accuracy, vendi, 1.0, 1.0, 0.0)]
    return Measured(name, Figures(*values), values[1], None)


DATA = arm("data", 1, 4)
STRENGTH = arm("scale=9,strength=1", 0.99, 4)
BEYOND = arm("scale=9,grid=2,strength=1,eta=2", 0.98, 6)
PINNED = arm("scale=9,strength=1,seeds=same", 0.99, 2)


@pytest.mark.parametrize(
    ("name", "is_shipped"),
    [
        ("scale=9,strength=0.5", True),
        ("scale=9,strength=1,seeds=same", True),
        ("scale=9,strength=1,eta=2", False),
        ("scale=9,strength=1,objective=vendi", False),
        ("scale=9,strength=0", False),
        ("scale=9,method=paper,eta=0.1", False),
    ],
)
def test_what_a_request_can_ask_for(name: str, is_shipped: bool) -> None:  # noqa: FBT001
    """Scale, strength and seeds are a client's; fields of the preset and rivals are not, and strength 0 is no guidance."""
    assert arm(name, 1, 1).is_shipped == is_shipped


def test_shipped_and_changed_fields_are_two_lines_of_the_plot() -> None:
    """What no request can ask for is not drawn as what one can."""
    assert STRENGTH.family == "denoised, scale 9"
    assert BEYOND.family == "denoised, other fields, scale 9"


def test_a_rival_meets_all_of_ours_or_the_shipped_alone() -> None:
    """At 98 % the changed fields have six, the shipped preset four; the same seeds meet the same seeds."""
    rivals = [arm("scale=1,method=spell,radius=1", 0.98, 5), arm("scale=9,strength=0,seeds=same", 0.99, 1)]
    measured = [DATA, STRENGTH, BEYOND, PINNED, *rivals]
    any_ours, shipped = comparisons(measured), comparisons(measured, shipped=True)
    assert [one.vendi.value for one in any_ours] == pytest.approx([6 / 5, 2])
    assert [one.vendi.value for one in shipped] == pytest.approx([4 / 5, 2])
    assert [one.verdict for one in (*any_ours, *shipped)] == ["ahead", "ahead", "behind", "ahead"]


def test_between_two_arms_stands_their_mixture() -> None:
    """A rival halfway in accuracy meets half of the images by each."""
    (found,) = comparisons([STRENGTH, BEYOND, arm("scale=1,method=spell,radius=1", 0.985, 5)])
    assert found.share == pytest.approx(0.5)
    assert found.vendi.value == pytest.approx(1)
    assert found.ours_text == "50% scale 9, strength 1; 50% scale 9, grid 2, strength 1, eta 2"


def test_the_best_of_a_rival_are_the_most_diverse_above_each_floor() -> None:
    """Of one family one arm a floor, once; guidance scale alone whole; broken arms and the same seeds left out."""
    worse, better = (
        arm("scale=1,method=spell,radius=1", 0.995, 2),
        arm("scale=1,method=spell,radius=2", 0.991, 3),
    )
    broken = arm("scale=1,method=spell,radius=3", 0.5, 9)
    wide = arm("scale=9,method=spell,radius=2", 0.92, 2.5)
    alone = [arm(f"scale={scale},strength=0", 0.999, scale) for scale in (1, 2)]
    pinned = arm("scale=9,method=spell,radius=2,seeds=same", 1, 5)
    found = best_rivals([DATA, STRENGTH, worse, better, broken, wide, *alone, pinned])
    assert {one.name for one in found} == {one.name for one in (better, wide, *alone)}


def test_the_short_table_has_both_verdicts() -> None:
    """Beside a rival's best arm stand ours of any fields and the shipped preset."""
    measured = [STRENGTH, BEYOND, arm("scale=1,method=spell,radius=1", 0.98, 5)]
    table = short_table(measured, comparisons(measured), comparisons(measured, shipped=True))
    *_, row = table.splitlines()
    assert "| spell | scale 1, radius 1 | 98.00 | 5.00 | 1.200 [" in row
    assert row.index("| ahead |") < row.index("| behind |")


@pytest.mark.parametrize("precision", [None, torch.linspace(0, 1, 8, dtype=torch.float64)])
def test_what_was_measured_survives_json(precision: torch.Tensor | None) -> None:
    """A published sweep can be read again, precision or none."""
    found = Measured.of_saved(json.loads(json.dumps(replace(STRENGTH, precision=precision).saved())))
    assert (found.name, found.accuracy, found.vendi) == (STRENGTH.name, 99, 4)
    assert (found.precision is None) == (precision is None)
    assert precision is None or torch.equal(found.precision, precision)
