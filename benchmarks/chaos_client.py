"""The clients of `chaos.py`: they ask over HTTP, go to another replica where one fails, and write down what they heard."""

import asyncio
import base64
import io
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from chaos_check import POISON
from PIL import Image

from app.domain.ids import JobId, TenantId, parse_image_id
from app.domain.job import JobState
from sparke_engine.diffusion.toy import prompt_digest, read_toy_image

PATIENCE_S = 180.0  # what gets no answer for so long is a fault
_RETRIED = (429, 500, 502, 503, 504)
_MAX_PAUSE_S = 0.5
_TERMINAL = frozenset(state.value for state in JobState if state.is_terminal)


@dataclass(frozen=True)
class Wish:
    """One job that a client wants, under one Idempotency-Key. The prompt names its number, so that it is found again."""

    number: int
    tenant_id: TenantId
    is_waited_for: bool
    is_poison: bool
    is_cancelled: bool
    is_followed: bool
    num_images: int

    @property
    def path(self) -> str:
        """Where it is asked for."""
        return "/v1/images/generations" if self.is_waited_for else "/v1/jobs"

    @property
    def key(self) -> str:
        """The Idempotency-Key."""
        return f"wish-{self.number}"

    @property
    def body(self) -> dict[str, Any]:
        """What is asked for."""
        word = POISON if self.is_poison else "star"
        return {"prompt": f"{word} {self.number}", "n": self.num_images, "seed": 1000 * self.number}


@dataclass
class Heard:
    """What clients were told."""

    ids: defaultdict[str, set[JobId]] = field(default_factory=lambda: defaultdict(set))  # by Idempotency-Key
    tenants: dict[JobId, TenantId] = field(default_factory=dict)
    succeeded: set[JobId] = field(default_factory=set)
    cancelled: set[JobId] = field(default_factory=set)
    followed: dict[JobId, list[tuple[str, str]]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    num_begun: int = 0


@dataclass(frozen=True)
class Api:
    """All replicas of the API, and a key for each tenant."""

    http: httpx.AsyncClient
    urls: Sequence[str]
    keys: Mapping[TenantId, str]
    heard: Heard
    dice: random.Random

    def headers(self, tenant_id: TenantId, **more: str) -> dict[str, str]:
        """A request's headers."""
        return {"authorization": f"Bearer {self.keys[tenant_id]}"} | {
            name.replace("_", "-"): value for name, value in more.items()
        }

    async def call(
        self, wish: Wish, method: str, path: str, *, first: int, is_wish: bool = False
    ) -> httpx.Response:
        """The first answer that is one: what breaks or is refused for now goes to the next replica. TimeoutError."""
        headers = self.headers(wish.tenant_id)
        if is_wish:
            headers["idempotency-key"] = wish.key
        body = wish.body if is_wish else None
        until_s, turn = time.monotonic() + PATIENCE_S, first
        while time.monotonic() < until_s:
            url = self.urls[turn % len(self.urls)]
            try:
                answer = await self.http.request(method, url + path, headers=headers, json=body)
            except httpx.TransportError:
                self.heard.counts["requests that broke off"] += 1
            else:
                is_final = answer.headers.get("x-should-retry") == "false"
                if answer.status_code not in _RETRIED or is_final:
                    return answer
                self._note(answer)
            turn += 1
            await asyncio.sleep(self.dice.uniform(0.05, _MAX_PAUSE_S))
        raise TimeoutError(f"no answer: {method} {path} of wish {wish.number} in {PATIENCE_S:g} s")

    def _note(self, answer: httpx.Response) -> None:
        self.heard.counts["requests refused for now"] += 1
        if answer.status_code == 500:
            self.heard.faults.append(f"internal error: {answer.text[:200]}")


async def fulfil(api: Api, wish: Wish, group: asyncio.TaskGroup) -> None:
    """One wish from asking to the end of what its client does with it. What goes wrong is written down."""
    try:
        await _fulfil(api, wish, group)
    except TimeoutError as error:
        api.heard.faults.append(str(error))


async def _fulfil(api: Api, wish: Wish, group: asyncio.TaskGroup) -> None:
    first = api.dice.randrange(len(api.urls))
    sends = [first, first + 1] if api.dice.random() < 0.05 else [first]  # a client that is too eager
    await asyncio.gather(*(_ask(api, wish, first=turn) for turn in sends))
    job_id = next(iter(api.heard.ids[wish.key]), None)
    if job_id is not None and wish.is_followed:
        group.create_task(follow(api, wish, job_id))
    if job_id is not None and wish.is_cancelled:
        await asyncio.sleep(api.dice.uniform(0.0, 0.4))
        await _cancel(api, wish, job_id)
    if api.dice.random() < 0.1:
        await _ask(api, wish, first=first + 1)


async def _ask(api: Api, wish: Wish, *, first: int) -> None:
    answer = await api.call(wish, "POST", wish.path, first=first, is_wish=True)
    heard, status = api.heard, answer.status_code
    heard.counts[f"answers {status}"] += 1
    if wish.is_waited_for and status == 200:
        told = {parse_image_id(image["id"])[0] for image in answer.json()["data"]}
        heard.succeeded |= told
        heard.faults += [f"mixed up: wish {wish.number}: {fault}" for fault in _compare(wish, answer.json())]
    elif not wish.is_waited_for and status == 202:
        told = {JobId(answer.json()["id"])}
    else:
        if not wish.is_waited_for or answer.headers.get("x-should-retry") != "false":
            heard.faults.append(f"unexpected: wish {wish.number} got {status}: {answer.text[:200]}")
        return
    heard.ids[wish.key] |= told
    heard.tenants |= dict.fromkeys(told, wish.tenant_id)


def _compare(wish: Wish, answer: dict[str, Any]) -> list[str]:
    """What is wrong with images that were answered."""
    files = [base64.b64decode(image["b64_json"]) for image in answer["data"]]
    expected = [(wish.body["prompt"], wish.body["seed"] + index) for index in range(wish.num_images)]
    if len(files) != len(expected):
        return [f"{len(files)} images, not {len(expected)}"]
    return [
        fault for one, what in zip(files, expected, strict=True) if (fault := wrong_with_image(one, *what))
    ]


def wrong_with_image(data: bytes, prompt: str, seed: int) -> str | None:
    """None where the bytes are a PNG file that shows the prompt and the seed."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            shown = read_toy_image(image)
    except OSError as error:
        return f"no PNG: {error}"
    return None if shown == (prompt_digest(prompt), seed) else "it shows another prompt or seed"


async def _cancel(api: Api, wish: Wish, job_id: JobId) -> None:
    first = api.dice.randrange(len(api.urls))
    answer = await api.call(wish, "POST", f"/v1/jobs/{job_id}/cancel", first=first)
    if answer.status_code != 200:
        api.heard.faults.append(f"lost: cancelling {job_id} got {answer.status_code}: {answer.text[:200]}")
        return
    job = answer.json()
    if job["status"] == "cancelled" or job["cancel_requested_at"] is not None:
        api.heard.cancelled.add(job_id)
        api.heard.counts["cancelled " + ("while it ran" if job["started_at"] else "while it waited")] += 1


async def follow(api: Api, wish: Wish, job_id: JobId) -> None:
    """A job's events to its end; after every break, of which it makes some itself, at the next replica."""
    told: list[tuple[str, str]] = []
    api.heard.followed[job_id] = told
    turn, until_s = api.dice.randrange(len(api.urls)), time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        try:
            if await _follow_once(api, wish, job_id, told, url=api.urls[turn % len(api.urls)]):
                return
        except httpx.TransportError:
            await asyncio.sleep(0.1)
        api.heard.counts["times that followers came back"] += 1
        turn += 1
        await asyncio.sleep(api.dice.uniform(0.0, 0.05))
    api.heard.faults.append(f"event lost: the end of {job_id} was not told in {PATIENCE_S:g} s")


async def _follow_once(api: Api, wish: Wish, job_id: JobId, told: list[tuple[str, str]], *, url: str) -> bool:
    """True once the end was told, or cannot be."""
    headers = api.headers(wish.tenant_id, **({"last_event_id": told[-1][0]} if told else {}))
    async with api.http.stream("GET", f"{url}/v1/jobs/{job_id}/events", headers=headers) as answer:
        if answer.status_code == 204:
            return True
        if answer.status_code != 200:
            if answer.status_code not in _RETRIED:
                api.heard.faults.append(f"event lost: following {job_id} got {answer.status_code}")
                return True
            await asyncio.sleep(0.1)
            return False
        async for event_id, kind in _events(answer):
            told.append((event_id, kind))
            if kind in _TERMINAL:
                return True
            if api.dice.random() < 0.15:
                return False
    return False


async def _events(answer: httpx.Response) -> AsyncIterator[tuple[str, str]]:
    """Whole events alone: what breaks off in the middle of one has not told it."""
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        name, _, value = line.partition(":")
        if line and name:
            fields[name] = value.strip()
        elif not line and "id" in fields:
            yield fields["id"], fields["event"]
            fields = {}
