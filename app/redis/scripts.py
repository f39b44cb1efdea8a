"""Lua scripts, kept as package data beside the code that calls them."""

from functools import cache
from importlib.resources import files

from redis.asyncio import Redis
from redis.commands.core import AsyncScript


def load_script(redis: Redis, package: str, name: str, *, after: str | None = None) -> AsyncScript:
    """The script `name`.lua of a package, behind the file `after`.lua where one is given.

    It is called by digest, and sent again to a server that forgot it. Every key it touches is passed in `keys`, and all of them are in one slot of a Redis Cluster.
    """
    names = [name] if after is None else [after, name]
    return redis.register_script("\n".join(_read(package, each) for each in names))


@cache
def _read(package: str, name: str) -> str:
    return (files(package) / f"{name}.lua").read_text(encoding="utf-8")
