"""The tokenizer that ships is the one that training builds, and it takes any text."""

from typing import Any

import pytest
from transformers import CLIPTokenizer

from sparke_engine.demo.captions import caption_table
from sparke_engine.demo.networks import MAX_TOKENS, build_tokenizer
from sparke_engine.diffusion.pipelines import demo_weights


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The one that ships."""
    return CLIPTokenizer.from_pretrained(demo_weights() / "tokenizer")


def test_training_builds_the_same_tokenizer(tokenizer: Any) -> None:
    """The same ids for the same captions: the vocabulary follows from the language alone."""
    table = caption_table()
    built = build_tokenizer(table)
    assert built.get_vocab() == tokenizer.get_vocab()
    some = list(table.texts[::97])
    assert built(some).input_ids == tokenizer(some).input_ids


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("", ""),
        ("a red circle", "a red circle"),
        ("A  RED\n\tCircle", "a red circle"),
        ("🦓 zebra", "🦓 zebra"),
        ("日本語", "日本語"),
        ("naïve — café", "naïve — café"),
        ("\x00", "\x00"),
        ("x" * 10_000, "x" * (MAX_TOKENS - 2)),
    ],
    ids=["empty", "plain", "case and blanks", "emoji", "japanese", "accents", "nul", "long"],
)
def test_odd_texts_come_back(tokenizer: Any, text: str, read: str) -> None:
    """Lower-cased, blanks as one, cut at the length of the text tower, but no byte unknown."""
    ids = tokenizer(text, padding="max_length", truncation=True).input_ids
    assert len(ids) == MAX_TOKENS == tokenizer.model_max_length
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == read


def test_no_caption_is_cut(tokenizer: Any) -> None:
    """The longest caption leaves room for more than three times its tokens."""
    longest = max(caption_table().texts, key=lambda text: len(tokenizer(text).input_ids))
    assert len(tokenizer(longest).input_ids) * 3 < MAX_TOKENS
