"""Writes that nobody hears of before replicas have them, where that is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError, RedisError

from app.errors import NotReplicated
from app.settings import Settings

_MARK_MS = 60_000


@dataclass(frozen=True, slots=True)
class Written:
    """What Redis answered, how many replicas have it, and how many must. It stands in Redis, whatever they have."""

    reply: Any
    num_having: int
    num_wanted: int

    def checked(self) -> Any:
        """The answer, or NotReplicated."""
        if self.num_having < self.num_wanted:
            raise NotReplicated(
                f"this is written, but {self.num_having} of {self.num_wanted} replicas of Redis have it yet, so a failure"
                " now could undo it; ask again shortly: with an Idempotency-Key it is not done twice"
            )
        return self.reply


class Replicas:
    """How many replicas must have what is acknowledged, and how long that is waited for; 0, as by default, asks none.

    WAIT counts the replicas that have all that its own connection wrote. So a command and its WAIT go out together, over
    one connection, and are repeated together where that is lost: the next one may lead to another server, which was a
    replica and did not have the command. Between them goes a mark: since Redis 7.2 nothing is waited for after a command
    that changes nothing, as a repeated one does.
    """

    def __init__(self, redis: Redis, *, number: int = 0, timeout_s: float = 1.0) -> None:
        self._redis = redis
        self._timeout_ms = max(1, int(1000 * timeout_s))  # 0 would be for ever
        self.number = number

    @classmethod
    def of(cls, redis: Redis, settings: Settings) -> "Replicas":
        """As the settings say."""
        return cls(redis, number=settings.redis_replicas, timeout_s=settings.redis_replicas_timeout_s)

    async def run(self, script: AsyncScript, keys: Sequence[str], args: Sequence[Any]) -> Written:
        """Runs a script, which must be idempotent."""
        if not self.number:
            return Written(await script(keys, args), 0, 0)
        call = ("EVALSHA", script.sha, len(keys), *keys, *args)
        try:
            return await self._send(keys[0], call)
        except NoScriptError:
            await self._redis.script_load(script.script)
            return await self._send(keys[0], call)

    async def command(self, name: str, key: str, *args: Any) -> Written:
        """Runs a command on a key, which must be idempotent; one that reads gives what replicas have, too."""
        if not self.number:
            plain: Any = self._redis
            return Written(await plain.execute_command(name, key, *args), 0, 0)
        return await self._send(key, (name, key, *args))

    async def _send(self, key: str, call: Sequence[Any]) -> Written:
        async with self._redis.pipeline(transaction=False) as opened:
            pipeline: Any = opened
            pipeline.execute_command(*call)
            pipeline.set(_mark_key(key), b"1", px=_MARK_MS)
            pipeline.execute_command("WAIT", self.number, self._timeout_ms)
            answers = await pipeline.execute(raise_on_error=False)  # else the message of an error changes
        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer
        return Written(answers[0], int(answers[2]), self.number)


def _mark_key(key: str) -> str:
    """A key of the same slot. It means nothing, and lives a minute."""
    tag = key.partition("{")[2].partition("}")[0] or key
    return f"sparke:{{{tag}}}:replicated"
