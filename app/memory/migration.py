"""The form that stored entries have: its number in Redis, and the way from the form before to the present one."""

import re
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from app.domain.ids import LatentSpace, MemoryName, TenantId
from app.errors import ConfigurationError, CorruptRecord
from app.memory.codec import CODEC_VERSION
from app.memory.keys import DATA_FORMAT_KEY, MIGRATED_KEY, MemoryKey
from app.memory.rewriting import Log, LogRewriter
from app.memory.upgrading import is_old, upgrade_entry
from app.redis.errors import redis_errors
from app.redis.transport import explain_refusal

DATA_FORMAT = CODEC_VERSION
_OLD_FORMAT = 1  # of releases that wrote no number
_SCANNED = 1000
_PEEKED = 8
_TOLD_EVERY = 100_000

_MEMORY_LOG = re.compile(r"sparke:\{t:([^}]+)\}:memory:([^:]+):([^:]+):log")
_OTHER_LOG = re.compile(r"sparke:\{t:[^}]+\}:(?:memory:[^:]+:[^:]+:discarded:[^:]+|memory-import:[^:]+:log)")
_COMPACTED = re.compile(r"sparke:\{t:[^}]+\}:memory:[^:]+:[^:]+:copy")

_log = structlog.get_logger(__name__)


@redis_errors
async def read_format(redis: Redis) -> int:
    """The number of the form of what is stored. A Redis without entries of an older release gets the present one.

    Raises ConfigurationError where it is no number of ours. Cost: one command; where there is no number yet, the names of all
    keys are gone through once.
    """
    found = await find_format(redis)
    if found is None:
        await redis.set(DATA_FORMAT_KEY, DATA_FORMAT, nx=True)
        found = await find_format(redis)
    if found is None:
        raise ConfigurationError(
            f"Redis has no {DATA_FORMAT_KEY} though it was just written, expected a number"
        )
    return found


@redis_errors
async def find_format(redis: Redis) -> int | None:
    """The same, but nothing is written: None where there is neither a number nor anything of an older release."""
    found: Any = await redis.get(DATA_FORMAT_KEY)
    if found is None:
        has_old = await redis.exists(MIGRATED_KEY) or await _has_old_entries(redis)
        return _OLD_FORMAT if has_old else None
    if not found.isdigit():
        raise ConfigurationError(f"Redis has {DATA_FORMAT_KEY} = {found!r}, expected a number")
    return int(found)


async def check_format(redis: Redis) -> None:
    """Raises ConfigurationError unless this release can work with what is stored and may look at it, and StoreUnavailable."""
    try:
        found = await read_format(redis)
    except NoPermissionError as error:
        raise explain_refusal(error) or error from error
    refuse_other_format(found)


def refuse_other_format(found: int) -> None:
    """Raises ConfigurationError, which says what to do, for the number of another form than the present one."""
    if found > DATA_FORMAT:
        raise _newer(found)
    if found < DATA_FORMAT:
        raise ConfigurationError(
            f"the memories in Redis have the data format {found}, this release works with {DATA_FORMAT}. Stop every process"
            " of the older release, make a backup, and run `sparke redis migrate`; on a data directory of one machine"
            " `sparke serve` does it as it starts"
        )


@redis_errors
async def migrate(redis: Redis) -> int:
    """Brings what is stored to the present form; how many logs were written anew. Nobody else may work with it meanwhile.

    Each log is written beside itself and replaced all at once, one after the other, so Redis needs the room of the largest
    one more. A process that dies leaves all entries readable to the next call, which goes on. Versions stay, and every bit
    of the vectors. An entry that is damaged stays as it is. Raises ConfigurationError for a newer form, StoreUnavailable.
    """
    found = await read_format(redis)
    if found > DATA_FORMAT:
        raise _newer(found)
    if found == DATA_FORMAT:
        await redis.delete(MIGRATED_KEY)
        return 0
    names = [name async for name in _logs(redis)]
    rewriter = LogRewriter(redis)
    _log.info("data_migration_begins", from_format=found, to_format=DATA_FORMAT, num_logs=len(names))
    num_written = 0
    for number, name in enumerate(names, 1):
        if await redis.sismember(MIGRATED_KEY, name):
            continue
        progress = _Progress(name)
        await rewriter.rewrite(_log_of(name), progress.upgraded)
        await redis.sadd(MIGRATED_KEY, name)
        num_written += 1
        _log.info(
            "data_migrated",
            log=name,
            number=number,
            of=len(names),
            num_entries=progress.num_entries,
            num_damaged=progress.num_damaged,
        )
    await redis.set(DATA_FORMAT_KEY, DATA_FORMAT)
    await redis.delete(MIGRATED_KEY)
    _log.info("data_migration_done", format=DATA_FORMAT, num_logs=num_written)
    return num_written


class _Progress:
    """Upgrades entries, counts them, and tells of it now and then."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.num_entries = 0
        self.num_damaged = 0

    def upgraded(self, version: int, data: bytes) -> bytes:
        self.num_entries += 1
        if self.num_entries % _TOLD_EVERY == 0:
            _log.info("data_migrating", log=self._name, num_entries=self.num_entries, version=version)
        try:
            return upgrade_entry(data, where=f"{self._name} version {version}")
        except CorruptRecord as error:
            self.num_damaged += 1
            _log.error("memory_entry_damaged", reason=error.message)
            return data


async def _logs(redis: Redis) -> AsyncIterator[str]:
    """The logs of all memories, also discarded ones, and those of imports. Begun compactions go: they would bring old bytes."""
    seen = set()
    async for name in _names(redis):
        if _COMPACTED.fullmatch(name):
            await redis.unlink(name)
        elif (_MEMORY_LOG.fullmatch(name) or _OTHER_LOG.fullmatch(name)) and name not in seen:
            seen.add(name)
            yield name


async def _has_old_entries(redis: Redis) -> bool:
    async for name in _names(redis):
        if _MEMORY_LOG.fullmatch(name) or _OTHER_LOG.fullmatch(name):
            oldest: Any = await redis.xrange(name, count=_PEEKED)
            newest: Any = await redis.xrevrange(name, count=_PEEKED)
            if any(is_old(fields.get(b"e", b"")) for _, fields in (*oldest, *newest)):
                return True
    return False


async def _names(redis: Redis) -> AsyncIterator[str]:
    """The names of all streams of tenants, some of them twice."""
    scan = partial(redis.scan, match="sparke:{t:*", count=_SCANNED, _type="stream")
    cursor: Any = 0
    found: Any
    while True:
        cursor, found = await scan(cursor)
        for name in found:
            yield name.decode()
        if cursor == 0:
            return


def _log_of(name: str) -> Log:
    parts = _MEMORY_LOG.fullmatch(name)
    if parts is None:
        return Log(name)
    return Log.of(MemoryKey(TenantId(parts[1]), LatentSpace(parts[2]), MemoryName(parts[3])))


def _newer(found: int) -> ConfigurationError:
    return ConfigurationError(
        f"the memories in Redis have the data format {found}, this release works with {DATA_FORMAT}: a newer release wrote"
        " them. Install that one, or use a backup from before"
    )
