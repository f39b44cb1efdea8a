"""What of an error may be logged: where it came from, always; what it says, where that cannot be somebody's prompt."""

import traceback
from collections.abc import Iterator
from types import TracebackType

from app.errors import ServiceError

WITHHELD = "[withheld: it may hold a prompt, see SPARKE_LOG_PROMPTS]"
_PLAIN = (ServiceError, OSError, MemoryError, ImportError)
_PLAIN_MODULES = ("redis", "sparke_engine", "torch", "obstore", "httpx")
_TELLING = (
    "InvalidArgument",
    "UnsupportedPipeline",
)  # of the engine's, which repeat a prompt that they refuse
_TENSORS = (
    "torch",
    "sparke_engine",
)  # whose frames call C++ code, which has none and speaks of shapes and devices
_MAX_CAUSES = 32  # of one error; beyond it those in the middle are left out
_MAX_GROUPS = 8  # one within the other
_HEADS = {
    True: "The above exception was the direct cause of the following exception:",
    False: "During handling of the above exception, another exception occurred:",
}


def describe_error(error: BaseException, *, shows_all: bool = False) -> str:
    """The error's traceback with those of its causes, without locals. Messages that may hold a prompt are withheld.

    Messages of our own errors, of the operating system, Redis, the object store and torch are shown. Those of other
    libraries often repeat what they were given. However many causes an error has, its description is bounded.
    """
    return "\n".join(_lines(error, shows_all=shows_all, seen=set()))


def _lines(error: BaseException, *, shows_all: bool, seen: set[int], depth: int = 0) -> Iterator[str]:
    chain = _chain(error, seen)
    num_left_out = max(0, len(chain) - _MAX_CAUSES)
    for index, one in enumerate(chain):
        if 0 <= index - _MAX_CAUSES // 2 < num_left_out:
            if index == _MAX_CAUSES // 2:
                yield f"\n[{num_left_out} causes left out]"
            continue
        if index:
            yield f"\n{_HEADS[one.__cause__ is not None]}\n"
        yield from _own_lines(one, shows_all=shows_all)
        if isinstance(one, BaseExceptionGroup):
            if depth == _MAX_GROUPS:
                yield "[groups within it left out]"
                continue
            for inner in one.exceptions:
                if id(inner) not in seen:
                    yield from _lines(inner, shows_all=shows_all, seen=seen, depth=depth + 1)


def _chain(error: BaseException, seen: set[int]) -> list[BaseException]:
    """The error behind its causes, the first one first; without those that were seen."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        chain.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return chain[::-1]


def _own_lines(error: BaseException, *, shows_all: bool) -> Iterator[str]:
    if error.__traceback__ is not None:
        yield "Traceback (most recent call last):"
        yield "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
    said = str(error) if shows_all or _is_plain(error) else WITHHELD if str(error) else ""
    yield f"{name_of(error)}: {said}" if said else name_of(error)


def name_of(error: BaseException) -> str:
    """The error's class, with its module where that is not the language's own."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _is_plain(error: BaseException) -> bool:
    if isinstance(error, _PLAIN):
        return True
    if _package(type(error).__module__) in _PLAIN_MODULES:
        return type(error).__name__ not in _TELLING
    return isinstance(error, RuntimeError) and _package(_raised_in(error.__traceback__)) in _TENSORS


def _package(module: str) -> str:
    return module.partition(".")[0]


def _raised_in(trace: TracebackType | None) -> str:
    """The module whose frame is the innermost."""
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", ""))
