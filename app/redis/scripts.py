"""Lua scripts, kept as package data beside the code that calls them."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from redis.asyncio import Redis
from redis.commands.core import AsyncScript


def load_script(redis: Redis, package: str, name: str, *, after: Sequence[str] = ()) -> AsyncScript:
    """The script `name`.lua of a package, behind the files of `after`: `package/name`, in this order.

    It is called by digest, and sent again to a server that forgot it. Every key it touches is passed in `keys`, and all of them are in one slot of a Redis Cluster.
    """
    places = [*after, f"{package}/{name}"]
    return redis.register_script("\n".join(_read(place) for place in places))


@cache
def _read(place: str) -> str:
    package, _, name = place.partition("/")
    return (files(package) / f"{name}.lua").read_text(encoding="utf-8")
