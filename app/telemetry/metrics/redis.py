"""Metrics of Redis itself, as an API process sees it when it is scraped."""

from prometheus_client import Gauge

from app.telemetry.metrics.declaring import API, Declarations, Declared


class RedisMetrics(Declarations):
    """Redis."""

    redis_memory_used_bytes = Declared(
        Gauge,
        "Memory that Redis uses. Every API process tells the same number: take the largest.",
        process=API,
        compare="With `sparke_redis_memory_limit_bytes`: at it Redis takes no writes, since nothing in it may be evicted.",
    )
    redis_memory_limit_bytes = Declared(
        Gauge,
        "Memory that Redis may use: its `maxmemory`, or what its machine has where that is not set.",
        process=API,
    )
