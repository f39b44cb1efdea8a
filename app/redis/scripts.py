"""Lua scripts, kept as package data beside the code that calls them."""

from importlib.resources import files

from redis.asyncio import Redis
from redis.commands.core import AsyncScript


def load_script(redis: Redis, package: str, name: str) -> AsyncScript:
    """The script `name`.lua of a package. It is called by digest, and sent again to a server that forgot it.

    Every key it touches is passed in `keys`, and all of them are in one slot of a Redis Cluster.
    """
    text = (files(package) / f"{name}.lua").read_text(encoding="utf-8")
    return redis.register_script(text)
