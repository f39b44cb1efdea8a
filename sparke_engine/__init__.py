"""SPARKE as a library: prompt-aware diversity guidance for stock diffusers pipelines (arXiv 2506.10173).

    pipe, bank = load_demo_pipeline(), MemoryBank()
    for _ in range(8):
        with guided(pipe, bank, "a red star"):
            image = pipe("a red star").images[0]

- `guided` guides a stock pipeline within a `with` block, and remembers what it makes.
- `MemoryBank` holds what was made: unit vectors, one bank for one latent space.
- `remember_pictures` fills a bank with pictures of your own.
- `load_demo_pipeline` loads the model that ships, on the CPU unless another device is named.

Beyond these: `guidance.presets` (the numbers of the method), `scores`, `baselines` (its rivals), `diffusion.families` (which pipelines),
and `errors`, whose one root is `SparkeError`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparke_engine.diffusion.library import guided, remember_pictures
    from sparke_engine.diffusion.pipelines import load_demo_pipeline
    from sparke_engine.memory_bank import MemoryBank

__all__ = ["MemoryBank", "guided", "load_demo_pipeline", "remember_pictures"]

_HOME = {
    "MemoryBank": "sparke_engine.memory_bank",
    "guided": "sparke_engine.diffusion.library",
    "load_demo_pipeline": "sparke_engine.diffusion.pipelines",
    "remember_pictures": "sparke_engine.diffusion.library",
}


def __dir__() -> list[str]:
    """Public names too, though none is loaded yet: what `help`, `dir` and completion show."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import what is asked for only then, so that importing the package stays cheap."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
