"""One image of each model before a worker says that it is ready, so that no request pays for what a first one costs."""

import time

import structlog

from app.worker.model.device import DeviceThread
from app.worker.model.models import LoadedModel
from sparke_engine.diffusion.engine import DenoisingPlan, SampleGroup

_STEPS = 2

_log = structlog.get_logger(__name__)


async def warm_up(model: LoadedModel, thread: DeviceThread) -> None:
    """Makes one image of the model's usual size, in two steps, and forgets it: nothing of it is stored or remembered.

    The first run loads kernels, opens handles of the device's libraries and fills its allocator. What goes wrong is logged
    and no more: a request may be smaller, or of a kind that works.
    """
    started_s = time.perf_counter()
    try:
        await thread.run(lambda: _run(model))
    except Exception:  # noqa: BLE001 - likewise
        _log.warning("model_not_warmed_up", model=model.spec.model_id, exc_info=True)
        return
    seconds = time.perf_counter() - started_s
    _log.info("model_warmed_up", model=model.spec.model_id, seconds=round(seconds, 3))


def _run(model: LoadedModel) -> None:
    spec, size = model.spec, model.spec.size
    plan = DenoisingPlan(
        size.default_width_px,
        size.default_height_px,
        min(_STEPS, spec.max_steps),
        spec.default_guidance_scale,
    )
    group = SampleGroup("warm-up", "", (0,), spec.default_strength, None)
    model.engine.embed_prompts([group.prompt])
    model.engine.generate([group], plan, lambda _step, _num_steps: None)
