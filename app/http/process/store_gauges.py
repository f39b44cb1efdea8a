"""Gauges that an API process reads from Redis when it is scraped: all processes tell the same."""

import math

from app.domain.ids import ModelId
from app.http.deps import Deps
from app.jobs.place import queues_of


class StoreGauges:
    """What Redis knows of the queue and of memories, by model, and of itself."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    async def read(self) -> None:
        """Sets them. Raises StoreUnavailable. Cost: seven commands for each model, and two."""
        for model in self._deps.catalogue:
            await self._read_queue(model)
        await self._read_memories()
        room = await self._deps.redis_room.read()
        self._deps.metrics.redis_memory_used_bytes.set(room.used_bytes)
        self._deps.metrics.redis_memory_limit_bytes.set(room.limit_bytes)

    def clear(self) -> None:
        """No number is better than an old one."""
        metrics = self._deps.metrics
        of_queue = (
            metrics.jobs_oldest_seconds,
            metrics.jobs_open,
            metrics.jobs_waiting,
            metrics.dead_letters,
        )
        for gauge in (*of_queue, metrics.memory_entries):
            gauge.clear()
        for of_redis in (metrics.redis_memory_used_bytes, metrics.redis_memory_limit_bytes):
            of_redis.set(math.nan)  # it has no labels, so it cannot be absent

    async def _read_queue(self, model: ModelId) -> None:
        deps, metrics = self._deps, self._deps.metrics
        oldest_at_ms = await deps.jobs.oldest_open_at_ms(model)
        age_ms = 0 if oldest_at_ms is None else max(0, deps.now_ms() - oldest_at_ms)
        metrics.jobs_oldest_seconds.labels(model).set(age_ms / 1000)
        num_open = sum([await deps.jobs.count_open(queue) for queue in queues_of([model])])
        num_held = sum([await deps.jobs.count_held(queue) for queue in queues_of([model])])
        metrics.jobs_open.labels(model).set(num_open)
        metrics.jobs_waiting.labels(model).set(max(0, num_open - num_held))
        num_letters = [await deps.jobs.count_dead_letters(queue) for queue in queues_of([model])]
        metrics.dead_letters.labels(model).set(sum(num_letters))

    async def _read_memories(self) -> None:
        counted = await self._deps.memories.counter.read()
        if counted is None:
            return
        for model, spec in self._deps.catalogue.items():
            self._deps.metrics.memory_entries.labels(model).set(counted.get(spec.latent_space, 0))
