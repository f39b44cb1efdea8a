"""What forgetting waits for before it is acknowledged: jobs that run, and the removal of what else tells of the entries."""

import asyncio

import structlog

from app.errors import ServiceError
from app.http.bodies.memory_answers import ForgottenAnswer
from app.http.deps import Deps
from app.http.guard.auditing import note
from app.memory.forgetting import Forgotten
from app.memory.keys import MemoryKey

CLEAN_S = 10.0  # what is not removed by then is left to the sweep

_log = structlog.get_logger(__name__)


async def acknowledge(
    memory: MemoryKey, forgotten: Forgotten, deps: Deps, *, act: str, wait_s: float
) -> ForgottenAnswer:
    """The answer, after a bounded wait. Raises StoreUnavailable: the entries are forgotten all the same.

    A job that begins from now on cannot read them; one that runs may have, so it is waited for, or told of.
    """
    note(num_entries=forgotten.num_entries)
    deps.metrics.memory_entries_forgotten.inc(forgotten.num_entries)
    _log.info("memory_forgotten", memory=str(memory), act=act, num_entries=forgotten.num_entries)
    models = [spec.model_id for spec in deps.catalogue.values() if spec.latent_space == memory.latent_space]
    running = await deps.memories.running.of(memory.tenant_id, models)
    num_running, num_remaining = await asyncio.gather(
        deps.memories.running.wait_ended(memory.tenant_id, running, wait_s), remove_remains(memory, deps)
    )
    return ForgottenAnswer(
        id=memory.memory_id,
        num_forgotten=forgotten.num_entries,
        version=forgotten.version,
        num_running=num_running,
        num_remaining=num_remaining,
    )


async def remove_remains(memory: MemoryKey, deps: Deps) -> int:
    """Removes what it can in time; how many images and logs are left."""
    try:
        async with asyncio.timeout(CLEAN_S):
            deps.metrics.images_forgotten.inc(await deps.memories.remains.clean(memory.tenant_id))
    except TimeoutError:
        _log.info("remains_left_to_sweep", memory=str(memory))
    except ServiceError as error:
        _log.warning("remains_left_to_sweep", memory=str(memory), error=error.message)
    return await deps.memories.remains.count(memory.tenant_id)
