"""A memory bank as a file: safetensors, so that reading one runs no code of it, with what it is in the metadata."""

import os
import secrets
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sparke_engine.core.rows import num_rows, same_number
from sparke_engine.errors import BankNotLoadable, InvalidArgument

KIND, VERSION = "sparke memory bank", "1"
_ROUNDING = 1e-5  # of a norm in fp32, with room: it is to tell other rows, not to measure these


class Held(NamedTuple):
    """What a bank holds; the names are those of the tensors in a file."""

    features: Float[Tensor, "n d"]
    prompt_embeddings: Float[Tensor, "n p"]


def write_bank(path: str | os.PathLike[str], held: Held) -> None:
    """Put a file in place, whole or not at all, whoever else writes it. Raises OSError."""
    place = Path(path)
    part = place.with_name(f".{place.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            file.write(save(held._asdict(), {"kind": KIND, "version": VERSION}))
            file.flush()
            os.fsync(file.fileno())
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)


def read_bank(path: str | os.PathLike[str]) -> Held:
    """What a file holds, on the CPU, to the bit. Raises BankNotLoadable."""
    try:
        with torch.inference_mode(mode=False), safe_open(path, framework="pt", device="cpu") as file:
            _check_kind(path, file.metadata() or {})
            held = Held(*(file.get_tensor(name).clone() for name in Held._fields))
    except (OSError, SafetensorError) as error:
        raise BankNotLoadable(f"no memory bank could be read from {path}: {error}") from error
    try:
        _check(held)
    except InvalidArgument as error:
        raise BankNotLoadable(f"{path} holds what no memory bank does: {error}") from error
    return held


def _check_kind(path: str | os.PathLike[str], metadata: dict[str, str]) -> None:
    if metadata.get("kind") != KIND:
        raise BankNotLoadable(f"{path} is no memory bank: give a file that MemoryBank.save wrote")
    if metadata.get("version") != VERSION:
        raise BankNotLoadable(
            f"{path} is a memory bank of version {metadata.get('version')}, and this program reads {VERSION}: use a "
            "newer one"
        )


def _check(held: Held) -> None:
    """Raise InvalidArgument for rows that no bank holds."""
    same_number(*held, ("features", "prompt embeddings"))
    for name, rows in held._asdict().items():
        if rows.dtype != torch.float32:
            raise InvalidArgument(f"{name} are {torch.float32}, got {rows.dtype}")
        if rows.shape == (0, 0):
            continue  # of a bank without entries
        num_rows(rows, name, least=0)
        norms = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)
        if not bool((((norms - 1).abs() <= _ROUNDING) | (norms == 0)).all()):
            raise InvalidArgument(
                f"{name} are unit vectors, got norms from {norms.min():.3g} to {norms.max():.3g}"
            )
