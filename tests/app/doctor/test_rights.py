"""Rights of users of a real Redis, asked for without using them."""

import pytest
from acl_lines import acl_lines
from redis.asyncio import Redis

from app.doctor.rights import calls, find_missing_rights, judge_rights
from app.redis.connection import connect

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("user", "role"),
    [("sparke-api", "an API process"), ("sparke-worker", "a worker"), ("default", "and a worker")],
)
async def test_documented_users_have_the_rights_of_their_role(redis_6_2: Redis, user: str, role: str):
    """By the lines of the document, on the oldest server that we promise; a user without bounds has those of both."""
    if user != "default":
        for words in acl_lines(user):
            await redis_6_2.execute_command(*words)
    path = redis_6_2.connection_pool.connection_kwargs["path"]
    client = redis_6_2 if user == "default" else connect(f"unix://{user}:secret@{path}")
    assert judge_rights(await find_missing_rights(client)).found.endswith(f"{role} does")
    assert await redis_6_2.dbsize() == 0
    if client is not redis_6_2:
        await client.aclose()


async def test_every_call_is_one_that_redis_knows(redis: Redis, redis_6_2: Redis):
    """Each is queued, by the oldest server and by the one of this machine: a wrong call would look like a right."""
    for client in (redis, redis_6_2):
        pool = client.connection_pool
        connection = await pool.get_connection()
        for call in (["multi"], *calls().values()):
            await connection.send_command(*call)
            assert await connection.read_response() in (b"OK", b"QUEUED"), call
        await connection.disconnect()
        await pool.release(connection)
        assert await client.dbsize() == 0
