"""A bank is kept in a file, and is the same bank when it comes back."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sparke_engine import MemoryBank
from sparke_engine.errors import BankNotLoadable
from sparke_engine.guidance.presets import preset_named

RULE = preset_named("demo")


def rows(seed: int, n: int, d: int) -> Tensor:
    """Random rows."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def bank_of(size: int) -> MemoryBank:
    """Entries of several prompts, one of them a zero row, which has no direction."""
    bank, features = MemoryBank(), rows(0, size, 12)
    features[:1] = 0
    bank.append(features, rows(1, size, 5).abs())
    return bank


def is_same(bank: MemoryBank, other: MemoryBank) -> bool:
    """To the bit."""
    pairs = ((bank.features, other.features), (bank.prompt_embeddings, other.prompt_embeddings))
    return all(torch.equal(one, another) for one, another in pairs)


@pytest.mark.parametrize("size", [0, 1, 500])
def test_a_bank_comes_back_to_the_bit(tmp_path: Path, size: int) -> None:
    """With the same entries and the same neighbours, sampled ones too; also where it was written and read in inference mode."""
    bank, path = bank_of(size), tmp_path / "bank.safetensors"
    with torch.inference_mode():
        bank.save(path)
        found = MemoryBank.load(str(path))
    assert len(found) == size
    assert is_same(found, bank)
    for one, other in zip(
        vars(found.neighbours(rows(2, 2, 5).abs(), RULE)).values(),
        vars(bank.neighbours(rows(2, 2, 5).abs(), RULE)).values(),
        strict=True,
    ):
        assert torch.equal(one, other)
    found.append(rows(3, 0, 12), rows(4, 0, 5))
    assert len(found) == size


def test_a_loaded_bank_grows_and_its_file_does_not(tmp_path: Path) -> None:
    """It is a bank like any other; saving it again puts the whole in the old one's place."""
    path = tmp_path / "bank.safetensors"
    bank_of(3).save(path)
    found = MemoryBank.load(path)
    found.append(rows(3, 2, 12), rows(4, 2, 5))
    assert (len(found), len(MemoryBank.load(path))) == (5, 3)
    found.save(path)
    assert is_same(MemoryBank.load(path), found)
    assert [each.name for each in tmp_path.iterdir()] == ["bank.safetensors"]


def test_a_file_is_whole_at_any_time(tmp_path: Path) -> None:
    """Who reads while others write sees one of the banks that were written."""
    path, sizes = tmp_path / "bank.safetensors", (2, 300)
    banks = [bank_of(size) for size in sizes]
    banks[0].save(path)

    def write(bank: MemoryBank) -> None:
        for _ in range(20):
            bank.save(path)

    writers = [threading.Thread(target=write, args=(bank,)) for bank in banks]
    for writer in writers:
        writer.start()
    seen = {len(MemoryBank.load(path)) for _ in range(40)}
    for writer in writers:
        writer.join()
    assert seen <= set(sizes)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    """A folder in the file's place, or none to hold it: an OSError, and nothing half written beside it."""
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "none" / "bank"):
        with pytest.raises(OSError, match=path.name):
            bank_of(2).save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_a_file_is_of_whom_others_are(tmp_path: Path) -> None:
    """Its mode is that of any new file."""
    (tmp_path / "other").touch()
    bank_of(2).save(tmp_path / "bank")
    assert (tmp_path / "bank").stat().st_mode == (tmp_path / "other").stat().st_mode


GOOD = {"features": torch.eye(3), "prompt_embeddings": torch.eye(3)}
KIND = {"kind": "sparke memory bank", "version": "1"}


@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        (GOOD, None, "is no memory bank"),
        (GOOD, {"format": "pt"}, "is no memory bank"),
        (GOOD, {**KIND, "version": "2"}, "version 2, and this program reads 1"),
        ({"features": torch.eye(3)}, KIND, "prompt_embeddings"),
        ({**GOOD, "features": torch.eye(3).half()}, KIND, "torch.float32"),
        ({**GOOD, "features": torch.eye(4)}, KIND, "as many"),
        ({**GOOD, "features": torch.ones(3)}, KIND, "rows"),
        ({**GOOD, "features": 2 * torch.eye(3)}, KIND, "unit"),
        ({**GOOD, "prompt_embeddings": torch.full((3, 3), torch.nan)}, KIND, "NaN"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, tensors: Any, metadata: Any, said: str) -> None:
    """Of other tensors, of a later version, or with rows that no bank holds."""
    path = tmp_path / "bank.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(BankNotLoadable, match=said):
        MemoryBank.load(path)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    """None, a folder, an empty one, a text, and one that was cut short."""
    bank_of(9).save(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("a bank of entries, they say")
    (tmp_path / "cut").write_bytes(whole[:-8])
    for name in ("none", "", "empty", "text", "cut"):
        with pytest.raises(BankNotLoadable, match="no memory bank could be read from"):
            MemoryBank.load(tmp_path / name)
