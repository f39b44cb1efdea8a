"""Maps the errors of the Redis client to the service's own, in one place."""

import re
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from redis import exceptions

from app.errors import StoreUnavailable

# Errors that redis-py has no class for. All pass: a full disk, a replica that is away or takes our writes, a long script, no memory. Redis 6
# wraps them in another error where a script meets them.
_PASSING = re.compile(r"(?:^|: -)(?:MISCONF|NOREPLICAS|READONLY|BUSY)\b|OOM command not allowed")

_P = ParamSpec("_P")
_T = TypeVar("_T")

AWAY = (
    exceptions.ConnectionError,  # refused, reset, loading, wrong password
    exceptions.TimeoutError,
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.TryAgainError,
    OSError,
)


def redis_errors(method: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """An async method whose errors of Redis are StoreUnavailable. What is left is a fault of ours and stays as it is."""

    @wraps(method)
    async def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await method(*args, **kwargs)
        except AWAY as error:
            raise StoreUnavailable(
                f"Redis does not answer as it should: {error}; try again shortly"
            ) from error
        except exceptions.ResponseError as error:
            if not _passes(error):
                raise
            raise StoreUnavailable(f"Redis takes no writes now: {error}; try again shortly") from error

    return wrapped


def _passes(error: exceptions.ResponseError) -> bool:
    return _PASSING.search(str(error)) is not None
