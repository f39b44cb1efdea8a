"""Whether the user of Redis may do what the service does, asked without doing it.

Redis looks at rights when it queues a command of a transaction, not when it runs it. So each command is queued, its
refusal is noted, and the connection is closed in place of EXEC: none of them ever runs.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from app.doctor.finding import Finding, ok, problem
from app.jobs.keys import WAKE_CHANNEL
from app.redis.transport import SEE

_KEY = "sparke:{t:doctor}:doctor"
_SHOWN = 6

# A call of each command that has the right number of arguments; K is a key of a tenant, C a channel.
_CALLS = """
bgrewriteaof; copy K K; del K; evalsha sha 1 K; exists K; get K; hdel K f; hexists K f; hget K f; hgetall K; hincrby K f 1
hkeys K; hlen K; hmget K f; hscan K 0; hset K f v; hsetnx K f v; hvals K; info; memory|usage K; mget K; persist K
pexpire K 1; ping; pttl K; publish C m; rename K K; sadd K m; scan 0; scard K; script|load text; select 0; set K v
sismember K m; smembers K; srem K m; subscribe C; unlink K; wait 0 1; xack K g 1-0; xadd K * f v
xautoclaim K g c 0 0; xclaim K g c 0 1-0; xdel K 1-0; xgroup|create K g 0; xinfo|groups K; xinfo|stream K; xlen K; xpending K g
xrange K - +; xreadgroup GROUP g c STREAMS K >; xrevrange K + -; xtrim K MAXLEN 1; zadd K 1 m; zcard K; zcount K 0 1
zpopmin K; zrange K 0 1; zrangebylex K - +; zrangebyscore K 0 1; zrem K m; zremrangebylex K - +; zremrangebyscore K 0 1
zrevrange K 0 1; zrevrangebylex K + -; zscan K 0; zscore K m
"""
ROLES: Mapping[str, str] = {
    "an API process": (
        "bgrewriteaof copy del evalsha exists get hdel hexists hget hgetall hincrby hkeys hlen hmget hscan hset hsetnx hvals"
        " info memory|usage mget persist pexpire ping pttl publish rename sadd scan scard script|load select set sismember"
        " smembers srem subscribe unlink wait xadd xdel xinfo|groups xinfo|stream xlen xrange xrevrange xtrim zadd zcard zcount zpopmin"
        " zrange zrangebylex zrangebyscore zrem zremrangebylex zremrangebyscore zrevrange zrevrangebylex zscan zscore"
    ),
    "a worker": (
        "del evalsha exists get hdel hexists hget hgetall hincrby hmget hset hsetnx info mget persist pexpire ping publish"
        " sadd scan script|load select set subscribe wait xack xadd xautoclaim xclaim xdel xgroup|create xinfo|stream xlen"
        " xpending xrange xreadgroup xrevrange xtrim zadd zcount zrange zrangebyscore zrem zscan zscore"
    ),
}


def calls() -> dict[str, list[str]]:
    """The call of each command by the command's name."""
    written = [call.split() for line in _CALLS.strip().splitlines() for call in line.split(";")]
    meant = {"K": _KEY, "C": WAKE_CHANNEL}
    return {name: [*name.split("|"), *(meant.get(word, word) for word in words)] for name, *words in written}


async def find_missing_rights(redis: Redis) -> frozenset[str]:
    """The commands, of all that the service uses, that this user may not send. None of them runs."""
    pool: Any = redis.connection_pool
    connection = await pool.get_connection()
    try:
        if await _is_refused(connection, ["multi"]) or await _is_refused(connection, ["exec"]):
            return frozenset({"multi", "exec"})
        await _is_refused(connection, ["multi"])
        return frozenset([name for name, call in calls().items() if await _is_refused(connection, call)])
    finally:
        await connection.disconnect()
        await pool.release(connection)


def judge_rights(missing: Iterable[str]) -> Finding:
    """The user has the rights of an API process, of a worker, or of both."""
    name, lacks = "redis rights", set(missing)
    missing_of = {role: sorted(lacks & {*needs.split(), "multi", "exec"}) for role, needs in ROLES.items()}
    may_be = [role for role, missed in missing_of.items() if not missed]
    if may_be:
        return ok(name, f"the user may do what {' and '.join(may_be)} does")
    role = min(missing_of, key=lambda one: len(missing_of[one]))
    missed = missing_of[role]
    more = f" and {len(missed) - _SHOWN} more" if len(missed) > _SHOWN else ""
    return problem(
        name,
        f"the user of SPARKE_REDIS_URL may not do all that {role} does: {', '.join(missed[:_SHOWN])}{more}, on {_KEY} and"
        f" {WAKE_CHANNEL}",
        f"give the user its commands, keys and channels by the ACL lines; {SEE}",
    )


async def _is_refused(connection: Any, call: Sequence[str]) -> bool:
    await connection.send_command(*call)
    try:
        await connection.read_response()
    except NoPermissionError:
        return True
    except ResponseError:  # another reason than rights
        return False
    return False
