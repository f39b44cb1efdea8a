"""A way to Redis on which answers get lost, and a client that goes it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from redis.asyncio import Redis

from app.redis.connection import connect


@dataclass
class LossyWay:
    """A way to Redis on which answers get lost: as many as it was told, with the connection that each came over.

    The command has reached the server and is done by then.
    """

    path: str
    num_to_lose: int = 0
    word: bytes = b""
    lost: list[bytes] = field(default_factory=list)
    running: list[asyncio.Task] = field(default_factory=list)

    async def serve(self, reader, writer):
        """One client's connection: asked and answered, one command after the other, each in as many pieces as it comes."""
        self.running.append(asyncio.current_task())
        server_reader, server_writer = await asyncio.open_unix_connection(self.path)
        asked = bytearray()

        async def ask():
            while piece := await reader.read(1 << 16):
                asked.extend(piece)
                server_writer.write(piece)

        asking = asyncio.create_task(ask())
        try:
            while answer := await server_reader.read(1 << 16):
                if self.num_to_lose and self.word in asked and not answer.startswith(b"-"):
                    self.num_to_lose -= 1
                    self.lost.append(answer)
                    return
                asked.clear()
                writer.write(answer)
        finally:
            asking.cancel()
            for each in (server_writer, writer):
                each.close()
                with suppress(ConnectionError):
                    await each.wait_closed()


@asynccontextmanager
async def lossy_client(redis: Redis) -> AsyncIterator[tuple[Redis, LossyWay]]:
    """A client, and the way that it goes."""
    way = LossyWay(redis.connection_pool.connection_kwargs["path"])
    server = await asyncio.start_server(way.serve, "127.0.0.1", 0)
    client = connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", timeout_s=5)
    await client.ping()
    try:
        yield client, way
    finally:
        await client.aclose()
        server.close()
        for connection in way.running:
            connection.cancel()
        await asyncio.gather(*way.running, return_exceptions=True)
        await server.wait_closed()
