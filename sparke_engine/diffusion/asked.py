"""What a stock pipeline is called with, seen where it checks its own arguments."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparke_engine.diffusion.layouts import NO_CLASS


@dataclass(frozen=True)
class Asked:
    """The arguments that a pipeline's call hands to its own check, by name."""

    arguments: dict[str, Any]

    @property
    def leads_away(self) -> bool:
        """Whether a negative prompt is given: a text that is not empty, or any embedding, whatever it is of."""
        return any(_is_given(value) for name, value in self.arguments.items() if name.startswith("negative_"))

    @property
    def has_negative_embedding(self) -> bool:
        """Whether what is led away from is given as an embedding, of which nobody can tell whether it is the empty text's."""
        return any(
            _holds_tensor(value) for name, value in self.arguments.items() if name.startswith("negative_")
        )

    @property
    def text(self) -> str | None:
        """The prompt where it is a text, or the first of several; None for a class or an embedding."""
        prompt = self.arguments.get("prompt")
        first = prompt[0] if isinstance(prompt, (list, tuple)) and prompt else prompt
        return first if isinstance(first, str) else None

    @property
    def has_one_prompt(self) -> bool:
        """Whether all images have one prompt. O(embeddings) where those are given, with one wait for the device."""
        return all(_is_one(value) for name, value in self.arguments.items() if name.startswith("prompt"))


def shows_calls(pipe: Any) -> bool:
    """Whether the pipeline checks its prompts by a method, as nearly all do; DiT and Kandinsky do not."""
    return hasattr(type(pipe), "check_inputs")


def takes_negative_prompt(pipe: Any) -> bool:
    """Whether its call has an argument for what to lead away from, as a text or an embedding."""
    return any(name.startswith("negative_") for name in inspect.signature(type(pipe).__call__).parameters)


@contextmanager
def heard_calls(pipe: Any, hear: Callable[[Asked], None]) -> Iterator[None]:
    """Within the block `hear` is told of every call of the pipeline, after its own check and before all else.

    What it raises ends the call. Where the pipeline does not show its calls only classes are heard, once a run, when its
    denoiser reads them.
    """
    if not shows_calls(pipe):
        with _heard_classes(pipe, hear):
            yield
        return
    before, stock = vars(pipe).get("check_inputs"), pipe.check_inputs
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def check_inputs(*args: Any, **kwargs: Any) -> Any:
        result = stock(*args, **kwargs)
        hear(Asked(dict(signature.bind(*args, **kwargs).arguments)))
        return result

    pipe.check_inputs = check_inputs
    try:
        yield
    finally:
        if before is None:
            del pipe.check_inputs
        else:
            pipe.check_inputs = before


@contextmanager
def _heard_classes(pipe: Any, hear: Callable[[Asked], None]) -> Iterator[None]:
    """For DiT: the classes of each run, of which the ones that say "no class" are none."""
    heard: list[Any] = [None]  # one tensor serves all steps of a run

    def look(_module: Any, _inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        labels = named.get("class_labels")
        if isinstance(labels, Tensor) and labels is not heard[0]:
            heard[0] = labels
            hear(Asked({"prompt": labels[labels != NO_CLASS][:, None]}))

    denoiser = getattr(pipe, "transformer", None)
    hook = None if denoiser is None else denoiser.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def _is_given(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_is_given(each) for each in value)
    return isinstance(value, Tensor) or bool(value)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_tensor(each) for each in value)
    return isinstance(value, Tensor)


def _is_one(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(each == value[0] for each in value if not isinstance(each, Tensor))
    if isinstance(value, Tensor) and value.ndim > 1:
        return torch.equal(value, value[:1].expand_as(value))
    return True
