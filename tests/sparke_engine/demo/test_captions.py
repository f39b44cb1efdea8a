"""The language of the demo model."""

import re

import pytest
import torch

from sparke_engine.demo.captions import EMPTY_SHARE, CaptionTable, caption_table, is_held_out
from sparke_engine.demo.scene import ATTRIBUTES, OPEN

# Words besides an attribute's own name, read off no table of the code.
SYNONYMS = {"circle": ["disc"], "moon": ["crescent"], "dotted": ["spotted"], "plain": [], "striped": []}


@pytest.fixture(scope="module")
def table() -> CaptionTable:
    """The whole language."""
    return caption_table()


def test_every_caption_says_what_is_stated_and_nothing_else(table: CaptionTable) -> None:
    """Of each attribute's words, a text holds that of the stated value, and none of an open one."""
    words = [set(re.findall(r"[a-z]+", text)) for text in table.texts]
    for column, (name, values) in enumerate(ATTRIBUTES.items()):
        known = [{value, *SYNONYMS.get(value, [])} for value in values]
        for text, said, value in zip(table.texts, words, table.stated[:, column].tolist(), strict=True):
            found = [index for index, of_value in enumerate(known) if said & of_value]
            assert found == ([] if value == OPEN else [value]), (text, name)


def test_texts_are_unique_and_the_first_is_empty(table: CaptionTable) -> None:
    """No text stands for two statements; the empty one states nothing and is drawn one time in fifty."""
    assert len(set(table.texts)) == len(table.texts) == len(table.stated) == len(table.weight)
    assert table.texts[0] == ""
    assert table.stated[0].tolist() == [OPEN] * 4
    assert EMPTY_SHARE <= float(table.weight[0]) <= 1.2 * EMPTY_SHARE


def test_weights_sum_to_one(table: CaptionTable) -> None:
    """A distribution, to the rounding of float32."""
    assert table.weight.min() >= 0
    assert float(table.weight.double().sum()) == pytest.approx(1, abs=1e-6)


def test_held_out_triples_are_never_drawn(table: CaptionTable) -> None:
    """Sixty-four of the 512 triples of shape, colour and background: with any texture or none, and no other caption."""
    held_out = {
        (shape, colour, background)
        for shape in range(8)
        for colour in range(8)
        for background in range(8)
        if is_held_out(shape, colour, background)
    }
    assert len(held_out) == 64
    expected = [tuple(row[:3]) in held_out for row in table.stated.tolist()]
    assert torch.equal(table.weight == 0, torch.tensor(expected))
    assert torch.equal(table.held_out, torch.nonzero(torch.tensor(expected))[:, 0])
    for column in range(3):  # each value is held out somewhere, and none everywhere
        values = table.stated[table.held_out, column]
        assert sorted(set(values.tolist())) == list(range(8))


def test_how_often_attributes_are_stated(table: CaptionTable) -> None:
    """The shape 15 times in 16 and the others half the time, less what is held out and empty."""
    stated = (table.stated != OPEN).double()
    shares = (stated * table.weight.double()[:, None]).sum(dim=0).tolist()
    assert shares == pytest.approx([0.92, 0.48, 0.48, 0.49], abs=0.02)


def test_a_bare_prompt_is_a_caption(table: CaptionTable) -> None:
    """What a newcomer types is what training has shown."""
    drawn = {text for text, weight in zip(table.texts, table.weight.tolist(), strict=True) if weight > 0}
    assert {"a star", "a red circle", "a red circle on night", "a picture of a heart"} <= drawn
