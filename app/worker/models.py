"""The models that this worker has loaded, and their prompt embeddings."""

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from app.domain.ids import ModelId
from app.domain.model import ModelSpec
from app.worker.device import DeviceThread
from app.worker.memory_cache import Dimensions
from sparke_engine.diffusion.engine import ImageEngine

MAX_EMBEDDINGS = 1024


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A catalogue entry and the engine that runs it."""

    spec: ModelSpec
    engine: ImageEngine

    @property
    def dimensions(self) -> Dimensions:
        """The lengths of its memory entries' vectors."""
        return Dimensions(self.engine.feature_dim, self.engine.prompt_dim)


class PromptEmbedder:
    """Unit prompt embeddings `[p]`, fp32, on the host; the last ones used are kept.

    Every prompt is embedded alone, so that its embedding never depends on who else asks, and equal prompts have
    equal bits.
    """

    def __init__(self, device: DeviceThread, *, max_embeddings: int = MAX_EMBEDDINGS) -> None:
        self._device = device
        self._max_embeddings = max_embeddings
        self._held: OrderedDict[tuple[ModelId, str], Tensor] = OrderedDict()

    async def embed(self, model: LoadedModel, prompt: str) -> Tensor:
        """The prompt's embedding. Raises what the engine raises."""
        key = (model.spec.model_id, prompt)
        embedding = self._held.get(key)
        if embedding is None:
            embedding = await self._device.run(partial(_embed_alone, model.engine, prompt))
            self._held[key] = embedding
        self._held.move_to_end(key)
        while len(self._held) > self._max_embeddings:
            self._held.popitem(last=False)
        return embedding


def _embed_alone(engine: ImageEngine, prompt: str) -> Tensor:
    return engine.embed_prompts([prompt])[0].clone()
