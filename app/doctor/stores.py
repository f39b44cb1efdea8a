"""What is checked of the object stores of images and files: a probe object is written, read, listed and removed."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from app.doctor.disk import Room, is_there, judge_folder, judge_room
from app.doctor.finding import Finding, ok, problem, shown_url
from app.errors import ConfigurationError, ServiceError
from app.files.contents import FileContents
from app.images.store import ImageStore
from app.objects.folder import ObjectFolder
from app.settings import Settings

_PROBE = b"sparke doctor"
_PATIENCE_S = 30.0
_RIGHTS = (
    "the service must write, read, list and delete there: give it the rights, or correct SPARKE_IMAGE_URL"
)


async def examine_stores(settings: Settings, *, least_free_bytes: int) -> list[Finding]:
    """Both stores, each with the free bytes of its disk where it is a local folder."""
    found = []
    for kind, url in ((ImageStore, settings.image_store_url), (FileContents, settings.file_store_url)):
        found += await examine_store(kind, url, least_free_bytes=least_free_bytes)
    return found


async def examine_store(kind: type[ObjectFolder], url: str, *, least_free_bytes: int) -> list[Finding]:
    """One store. A local folder that is not there yet is not made: its place is looked at."""
    name, local = f"{kind.WHAT} store", local_folder(url)
    if local is not None and not is_there(local):
        return [judge_folder(name, local)]
    try:
        store = await kind.reach(url)
    except ConfigurationError as error:
        return [problem(name, error.message, "correct SPARKE_IMAGE_URL")]
    found = [await probe(store, name, shown_url(url))]
    if local is not None:
        found.append(judge_room(f"{kind.WHAT} disk", Room.of(local), least_free_bytes=least_free_bytes))
    return found


def local_folder(url: str) -> Path | None:
    """The folder that a URL of a store names, where it is one of this machine."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


async def probe(store: ObjectFolder, name: str, url: str) -> Finding:
    """Writes, reads, lists and removes an object. What cannot be removed goes with the images or files of its age."""
    place = f"{store.FOLDER}/sparke-doctor/"
    key = f"{place}{secrets.token_hex(8)}"
    steps: tuple[tuple[str, Callable[[], Awaitable[object]], object], ...] = (
        ("written", lambda: store.put(key, _PROBE), None),
        ("read", lambda: store.get(key), _PROBE),
        ("listed", lambda: _lists(store, place, key), True),
        ("removed", lambda: store.delete(key), None),
        ("removed", lambda: store.has(key), False),
    )
    for deed, step, expected in steps:
        fault = await _fault_of(step, expected)
        if fault is not None:
            with suppress(ServiceError, TimeoutError):
                await asyncio.wait_for(store.delete(key), _PATIENCE_S)
            return problem(name, f"{url}: an object cannot be {deed}: {fault}", _RIGHTS)
    return ok(name, f"{url}: an object was written, read, listed and removed")


async def _fault_of(step: Callable[[], Awaitable[object]], expected: object) -> str | None:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            given = await step()
    except TimeoutError:
        return f"no answer within {_PATIENCE_S:g} s"
    except ServiceError as error:
        return error.message
    return None if given == expected else "the store answers as if it had not been"


async def _lists(store: ObjectFolder, place: str, key: str) -> bool:
    async for keys in store.list_below(place):
        if key in keys:
            return True
    return False
