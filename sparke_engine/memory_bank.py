"""An exact memory within the process, which can be kept in a file: for library users, and the oracle of the service's memories."""

from dataclasses import replace
from os import PathLike
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparke_engine.bank_file import Held, read_bank, write_bank
from sparke_engine.core.domains import check_type
from sparke_engine.core.kernels import exact_unit, unit
from sparke_engine.core.rows import num_rows, same_length, same_number
from sparke_engine.core.sampling import drawn
from sparke_engine.errors import InvalidArgument, ShapeMismatch
from sparke_engine.types import NeighbourRule, Neighbours

_PLACE: Final[Any] = {"device": "cpu", "dtype": torch.float32}  # whatever torch's defaults are


class MemoryBank:
    """What was made so far: a unit feature and a unit prompt embedding for each image, fp32 on the CPU, in order.

    One bank holds images of one latent space: lengths are fixed by the first `append`.
    """

    def __init__(self) -> None:
        self._features: Tensor = torch.empty(0, 0, **_PLACE)
        self._prompt_embeddings: Tensor = torch.empty(0, 0, **_PLACE)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def features(self) -> Float[Tensor, "n d"]:
        """All features, oldest first."""
        return self._features[: self._size]

    @property
    def prompt_embeddings(self) -> Float[Tensor, "n p"]:
        """All prompt embeddings, oldest first."""
        return self._prompt_embeddings[: self._size]

    def append(self, features: Float[Tensor, "b d"], prompt_embeddings: Float[Tensor, "b p"]) -> None:
        """Add b entries; rows are scaled to unit norm. Amortised O(b·(d+p)).

        Raises ShapeMismatch for what does not fit, InvalidArgument for NaN or infinity; then nothing is added.
        """
        num_rows(features, "features", least=0)
        num_rows(prompt_embeddings, "prompt embeddings", least=0)
        same_number(features, prompt_embeddings, ("features", "prompt embeddings"))
        if self._size > 0:
            expected = (self._features.shape[1], self._prompt_embeddings.shape[1])
            actual = (features.shape[1], prompt_embeddings.shape[1])
            if actual != expected:
                raise ShapeMismatch(
                    f"this bank holds vectors of lengths {expected}, got {actual}: use another bank"
                )
        self._features = _grown(self._features, self._size, features)
        self._prompt_embeddings = _grown(self._prompt_embeddings, self._size, prompt_embeddings)
        self._size += len(features)

    def forget(self, is_forgotten: Bool[Tensor, " n"]) -> None:
        """Remove the entries for which the mask is true, oldest first, as if they had never been there. O(n·(d+p)).

        Raises InvalidArgument for what is no mask of this bank's length; then nothing is removed.
        """
        form = getattr(is_forgotten, "dtype", None), tuple(getattr(is_forgotten, "shape", ()))
        if form != (torch.bool, (self._size,)):
            raise InvalidArgument(
                f"what this bank forgets is a mask [{self._size}] of {torch.bool}, true where an entry goes"
            )
        with torch.inference_mode(mode=False):
            kept = ~is_forgotten.cpu()
            self._features, self._prompt_embeddings = self.features[kept], self.prompt_embeddings[kept]
        self._size = len(self._features)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the bank to a file, in the place of one that is there, whole or not at all. Raises OSError."""
        write_bank(path, Held(self.features, self.prompt_embeddings))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "MemoryBank":
        """The bank of a file that `save` wrote, to the bit. Raises BankNotLoadable for any other file, and for none."""
        bank = cls()
        bank._features, bank._prompt_embeddings = read_bank(path)
        bank._size = len(bank._features)
        return bank

    def neighbours(self, prompt_embeddings: Float[Tensor, "b p"], rule: NeighbourRule) -> Neighbours:
        """For each of b prompts every entry with k_Y^p ≥ ε, oldest first; padded to one k, the padding masked.

        Where more than `rule.max_neighbours` are near, a weighted sample stands for all: see `drawn`, with the influence
        k_Y^p (1 under a rule that takes all), an entry's place as its id, and the bank's size as salt. So the bank as it
        is gives the same sample every time, and a bank that has grown another one: see ADR 22. O(b·n·p). Raises as `append`.
        """
        num_rows(prompt_embeddings, "prompt embeddings", least=0)
        check_type("a rule", rule, NeighbourRule, "a preset")
        asked = unit(prompt_embeddings.float().cpu())
        if self._size > 0:
            same_length(
                self._prompt_embeddings, asked, ("this bank's prompt embeddings", "prompt embeddings")
            )
        else:
            return Neighbours.of(torch.zeros(len(asked), 0, 0, **_PLACE), asked[:, None, :][:, :0])
        chosen = [_select(self.prompt_embeddings, prompt, rule) for prompt in asked]
        if len(chosen) == 1:
            return self._only(*chosen[0])
        num_problems, longest = len(chosen), max((len(index) for index, _ in chosen), default=0)
        features = torch.zeros(num_problems, longest, self._features.shape[1], **_PLACE)
        embeddings = torch.zeros(num_problems, longest, asked.shape[1], **_PLACE)
        mask = torch.zeros(num_problems, longest, device="cpu", dtype=torch.bool)
        weights = torch.zeros(num_problems, longest, **_PLACE)
        for problem, (index, counts) in enumerate(chosen):
            k = len(index)
            features[problem, :k] = self.features[index]
            embeddings[problem, :k] = self.prompt_embeddings[index]
            mask[problem, :k] = True
            weights[problem, :k] = counts
        return Neighbours(features, embeddings, mask, weights)

    def _only(self, index: Int[Tensor, " k"], weights: Float[Tensor, " k"]) -> Neighbours:
        """The neighbours of a single problem: no padding, and no copy where they are all entries."""
        is_whole = len(index) == self._size
        features, prompts = (
            rows if is_whole else rows[index] for rows in (self.features, self.prompt_embeddings)
        )
        found = Neighbours.of(features[None], prompts[None])
        return replace(found, weights=weights[None])


def _grown(held: Tensor, size: int, rows: Tensor) -> Tensor:
    needed = size + len(rows)
    if needed > len(held) or held.shape[1] != rows.shape[1]:
        with torch.inference_mode(mode=False):  # a later append may come without it, and must write here too
            larger = torch.empty(max(needed, 2 * len(held), 64), rows.shape[1], **_PLACE)
        larger[:size] = held[:size] if size else larger[:0]
        held = larger
    held[size:needed] = exact_unit(rows.detach().cpu()).float()
    return held


def _select(
    entries: Float[Tensor, "n p"], prompt: Float[Tensor, " p"], rule: NeighbourRule
) -> tuple[Int[Tensor, " k"], Float[Tensor, " k"]]:
    """The neighbours' places, ascending, and the weight of each.

    Summed row by row, unlike a matrix product: entries of one prompt have one influence, to the bit.
    """
    influence = entries.new_ones(len(entries))
    if rule.min_prompt_kernel > 0:
        distances = (entries - prompt).square_().sum(-1)
        influence = torch.exp(distances * (-rule.power / (2 * rule.prompt_bandwidth**2)))
    near = (influence >= rule.min_prompt_kernel).nonzero()[:, 0]
    kept, weights = drawn(influence[near], near, salt=len(entries), most=rule.max_neighbours)
    return near[kept], weights.float()
