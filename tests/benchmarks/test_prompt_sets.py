"""The pairs of prompts that bandwidths are chosen from."""

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizer

SETS: dict[str, Any] = runpy.run_path(
    str(Path(__file__).resolve().parents[2] / "benchmarks" / "prompt_sets.py")
)


def test_every_pair_is_of_one_kind() -> None:
    """Two ways to state one scene, two scenes of one theme, two themes."""
    prompts = SETS["PromptSet"].of({"a": {"a1": ["0", "1"], "a2": ["4"]}, "b": {"b1": ["9", "10"]}})

    def on_a_circle(texts: Sequence[str]) -> Tensor:
        angles = torch.tensor([float(text) for text in texts], dtype=torch.float64) / 10
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    def distances(*gaps: int) -> list[float]:
        return [2 * torch.sin(torch.tensor(gap / 20, dtype=torch.float64)).item() for gap in sorted(gaps)]

    pairs = SETS["Pairs"].of(prompts, on_a_circle)
    assert pairs.related.sort().values.tolist() == pytest.approx(distances(1, 1))
    assert pairs.overlapping.sort().values.tolist() == pytest.approx(distances(4, 3))
    assert pairs.unrelated.sort().values.tolist() == pytest.approx(distances(9, 10, 8, 9, 5, 6))


@pytest.mark.parametrize("name", ["real_prompts", "demo_prompts"])
def test_the_sets_are_as_described(name: str) -> None:
    """24 scenes in four ways each, no text twice, at least four themes."""
    prompts = SETS[name]()
    assert len(set(prompts.texts)) == len(prompts.texts) == 96
    assert prompts.scenes.bincount().tolist() == [4] * 24
    assert len(prompts.themes.bincount()) >= 4


def test_a_sentence_encoder_averages_over_tokens(tmp_path: Path) -> None:
    """Any folder of transformers will do; the padding beside a longer text changes no text's embedding."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "sleeps"]
    BertTokenizer(vocab={word: place for place, word in enumerate(words)}).save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=16,
        )
    ).eval()
    model.save_pretrained(tmp_path)
    embed = SETS["sentence_encoder"](tmp_path)
    with torch.no_grad():
        states = model(torch.tensor([[2, 5, 6, 3]])).last_hidden_state[0]
    beside_a_longer_one = embed(["a cat", "a cat sleeps a cat"])[0]
    assert torch.allclose(beside_a_longer_one, states.mean(0), atol=1e-5)  # fp32, other products of matrices
