"""The clients of `monitoring.py`: mixed traffic of every kind, floods and single bad jobs, and a receiver of webhooks."""

import asyncio
import io
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
from monitoring_scene import DEMO, TENANTS, TOY, Scene
from monitoring_worker import BROKEN
from PIL import Image

PROMPTS = tuple(f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("star", "moon", "house"))
NUM_CLIENTS = 4
_MEMORY = f"{TOY}.default"


@dataclass
class Traffic:
    """Requests of all kinds at random from a few clients. `counts` has each kind with its statuses."""

    scene: Scene
    dice: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    _clients: dict[str, httpx.AsyncClient] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        for tenant, key in self.scene.keys.items():
            headers = {"authorization": f"Bearer {key}"}
            self._clients[tenant] = httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(70))
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def ask(self, kind: str, method: str, path: str, **more: Any) -> httpx.Response | None:
        """One request to some replica, counted; None where it broke off."""
        tenant = more.pop("tenant", None) or self.dice.choice(TENANTS)
        try:
            url = self.dice.choice(self.scene.urls) + path
            answer = await self._clients[tenant].request(method, url, **more)
        except httpx.TransportError:
            self.counts[f"{kind}: broke off"] += 1
            return None
        self.counts[f"{kind}: {answer.status_code}"] += 1
        return answer

    async def submit(self, prompt: str, **more: Any) -> str | None:
        """A job; its id, where it was accepted."""
        tenant = more.pop("tenant", None)
        body = {"prompt": prompt, "model": TOY, **more}
        answer = await self.ask("job", "POST", "/v1/jobs", json=body, tenant=tenant)
        return str(answer.json()["id"]) if answer is not None and answer.status_code == 202 else None

    async def flood(self, jobs_a_second: float) -> None:
        """Jobs of all tenants, for ever, whether they are taken or not."""
        while True:
            for tenant in TENANTS:
                await self.submit(self.dice.choice(PROMPTS), tenant=tenant)
            await asyncio.sleep(len(TENANTS) / jobs_a_second)

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(NUM_CLIENTS):
                group.create_task(self._be_a_client())

    async def _be_a_client(self) -> None:
        acts: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (30, self._generate),
            (8, self._stream),
            (8, self._follow),
            (6, self._cancel),
            (4, self._demo),
            (3, self._batch),
            (3, self._file),
            (4, self._edit),
            (2, self._remember),
            (6, self._question),
            (3, self._forget),
            (6, self._fault),
            (1, self._break),
        ]
        while True:
            (act,) = self.dice.choices([act for _, act in acts], [weight for weight, _ in acts])
            await act()
            await asyncio.sleep(self.dice.uniform(0.2, 0.8))

    async def _generate(self) -> None:
        body = {"prompt": self.dice.choice(PROMPTS), "model": TOY, "n": 2, "response_format": "url"}
        answer = await self.ask("generate", "POST", "/v1/images/generations", json=body)
        if answer is not None and answer.is_success:
            url = httpx.URL(answer.json()["data"][0]["url"])
            await self.ask("image", "GET", url.raw_path.decode())

    async def _stream(self) -> None:
        body = {"prompt": self.dice.choice(PROMPTS), "model": TOY, "stream": True, "partial_images": 2}
        await self.ask("stream", "POST", "/v1/images/generations", json=body)

    async def _demo(self) -> None:
        body = {"prompt": self.dice.choice(PROMPTS[:2]), "model": DEMO}
        await self.ask("demo model", "POST", "/v1/images/generations", json=body)

    async def _follow(self) -> None:
        tenant = self.dice.choice(TENANTS)
        job_id = await self.submit(self.dice.choice(PROMPTS), tenant=tenant, num_previews=1)
        if job_id is not None:
            await self.ask("events", "GET", f"/v1/jobs/{job_id}/events", tenant=tenant)

    async def _cancel(self) -> None:
        tenant = self.dice.choice(TENANTS)
        job_id = await self.submit(self.dice.choice(PROMPTS), tenant=tenant, steps=50)
        if job_id is not None:
            await self.ask("cancel", "POST", f"/v1/jobs/{job_id}/cancel", tenant=tenant)

    async def _batch(self) -> None:
        tenant = self.dice.choice(TENANTS)
        body = {"prompt": self.dice.choice(PROMPTS), "model": TOY}
        line = {"method": "POST", "url": "/v1/images/generations", "body": body}
        lines = "\n".join(json.dumps({"custom_id": str(number), **line}) for number in range(8))
        sent = await self._upload(tenant, lines)
        if sent is not None:
            asked = {"input_file_id": sent, "endpoint": line["url"], "completion_window": "24h"}
            await self.ask("batch", "POST", "/v1/batches", json=asked, tenant=tenant)

    async def _file(self) -> None:
        tenant = self.dice.choice(TENANTS)
        sent = await self._upload(tenant, "{}\n" * 1000)
        if sent is not None:
            await self.ask("file", "GET", f"/v1/files/{sent}/content", tenant=tenant)
            await self.ask("file", "DELETE", f"/v1/files/{sent}", tenant=tenant)

    async def _upload(self, tenant: str, text: str) -> str | None:
        files = {"file": ("lines.jsonl", text)}
        sent = await self.ask(
            "file", "POST", "/v1/files", files=files, data={"purpose": "batch"}, tenant=tenant
        )
        return str(sent.json()["id"]) if sent is not None and sent.is_success else None

    async def _edit(self) -> None:
        data = {"prompt": self.dice.choice(PROMPTS), "model": TOY}
        files = {"image": ("a.png", _picture())}
        await self.ask("edit", "POST", "/v1/images/edits", files=files, data=data)

    async def _remember(self) -> None:
        data, files = {"name": "pictures", "model": TOY}, {"image": ("a.png", _picture())}
        await self.ask("reference", "POST", "/v1/references", files=files, data=data)

    async def _question(self) -> None:
        kind = self.dice.choice(("search", "preview", "stats"))
        if kind == "stats":
            await self.ask("question", "GET", f"/v1/memories/{_MEMORY}/stats")
        else:
            body = {"prompt": self.dice.choice(PROMPTS)}
            await self.ask("question", "POST", f"/v1/memories/{_MEMORY}/{kind}", json=body)

    async def _forget(self) -> None:
        tenant = self.dice.choice(TENANTS)
        found = await self.ask("entries", "GET", f"/v1/memories/{_MEMORY}/entries?limit=2", tenant=tenant)
        if found is not None and found.is_success and found.json()["data"]:
            versions = {"versions": [one["version"] for one in found.json()["data"]]}
            await self.ask("forget", "POST", f"/v1/memories/{_MEMORY}/forget", json=versions, tenant=tenant)

    async def _fault(self) -> None:
        kind = self.dice.randrange(4)
        if kind == 0:
            await self.ask("bad", "POST", "/v1/images/generations", json={"prompt": "a star", "steps": -1})
        elif kind == 1:
            await self.ask("bad", "GET", "/v1/jobs/job_0")
        elif kind == 2:
            headers = {"authorization": "Bearer nobody"}
            await self.ask("bad", "GET", "/v1/models", headers=headers)
        else:
            body = {"prompt": "a star", "model": "nothing"}
            await self.ask("bad", "POST", "/v1/images/generations", json=body)

    async def _break(self) -> None:
        await self.submit(f"{BROKEN} now and then")


@dataclass
class Receiver:
    """Takes webhooks with 204, or, while it `hangs`, not at all."""

    port: int = 0
    hangs: bool = False
    num_heard: int = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """On loopback, on a free port."""
        server = await asyncio.start_server(self._hear, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            sizes = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            await reader.readexactly(int(sizes[0].partition(b":")[2]))
            if self.hangs:
                await reader.read()  # until the sender has had enough
            else:
                self.num_heard += 1
                writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def _picture() -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(written, "PNG")
    return written.getvalue()
