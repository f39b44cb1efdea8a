"""Forgetting, against a model: what a memory held at each of its versions."""

import random

import numpy as np
import pytest

from app.domain.ids import LatentSpace, MemoryName, TenantId, image_id, make_job_id
from app.errors import NotFound, VersionGone
from app.memory.codec import MemoryEntry, encode_entry
from app.memory.forgetting import CLOCK_SLACK_MS, Forgotten, MemoryForgetter
from app.memory.keys import (
    FORGETTING_KEY,
    MemoryKey,
    forgotten_key,
    index_key,
    log_key,
    meta_key,
    remains_key,
)
from app.memory.overview import MemoryOverview
from app.memory.store import MemoryStore

pytestmark = pytest.mark.anyio

MEMORY = MemoryKey(TenantId("acme"), LatentSpace("demo"), MemoryName("default"))
BASE_MS = 1_700_000_000_000


def _image(number):
    return image_id(make_job_id(BASE_MS + number, b"12345678"), 0)


def _entry(number, *, at_ms=None):
    ones = np.ones(2, np.float16)
    made_at_ms = BASE_MS + number if at_ms is None else at_ms
    return encode_entry(MemoryEntry(_image(number), number, made_at_ms, ones, ones))


class Model:
    """A memory in Redis, and what it must hold. Entries are written as the commit script does."""

    def __init__(self, redis, *, max_ranges=1000):
        self.redis, self.store = redis, MemoryStore(redis)
        self.forgetter = MemoryForgetter(redis, clock_ms=lambda: BASE_MS, max_ranges=max_ranges)
        self.live: set[int] = set()
        self.version = 0
        self.held_at = {0: frozenset()}

    async def write(self, num_entries=1, *, time_of=None):
        """Appends entries, at times of their own."""
        async with self.redis.pipeline(transaction=False) as pipeline:
            for _ in range(num_entries):
                self.version += 1
                self.live.add(self.version)
                entry = _entry(self.version, at_ms=time_of and time_of(self.version))
                pipeline.xadd(log_key(MEMORY), {"e": entry}, id=f"{self.version}-0")
                self.held_at[self.version] = frozenset(self.live)
            pipeline.hset(meta_key(MEMORY), "version", self.version)
            pipeline.sadd(index_key(MEMORY.tenant_id), "demo:default")
            await pipeline.execute()

    async def forget(self, versions):
        """Forgets some entries, and checks the answer."""
        gone = self.live & set(versions)
        answer = await self.forgetter.forget_versions(MEMORY, versions)
        self._note(gone)
        assert (answer.num_entries, answer.version) == (len(gone), self.version)

    async def clear(self):
        """Forgets everything, and checks the answer."""
        num_gone = len(self.live)
        answer = await self.forgetter.forget_all(MEMORY)
        self.version += 1
        self.live.clear()
        self.held_at[self.version] = frozenset()
        assert (answer.num_entries, answer.version) == (num_gone, self.version)

    def _note(self, gone):
        self.live -= gone
        if gone:
            self.version += 1
            self.held_at[self.version] = frozenset(self.live)

    async def versions(self):
        """What the log holds."""
        page = await self.store.read_after(MEMORY, 0, 10_000)
        return {version for version, _ in page}

    async def readable(self):
        """The versions that a replay may read."""
        found = set()
        for version in range(self.version + 1):
            try:
                point = await self.store.resolve_version(MEMORY, version)
            except VersionGone:
                continue
            assert (point.version, point.current) == (version, self.version)
            found.add(version)
        return found

    def whole(self):
        """The versions of which everything is still there."""
        return {version for version, held in self.held_at.items() if held <= self.live}

    def whole_and_filled(self):
        """Those that a replay must be able to read: of the others only those at which there was nothing."""
        return {version for version in self.whole() if self.held_at[version] or version == self.version}


async def _live_through(model, rng, num_acts):
    for _ in range(num_acts):
        act = rng.random()
        if act < 0.5:
            await model.write(rng.randint(1, 4))
        elif act < 0.95:
            start = rng.randint(0, max(1, model.version))
            await model.forget(rng.choice([[start], range(start, start + 4), range(1, start // 2 + 1)]))
        elif model.version:
            await model.clear()


@pytest.mark.parametrize("seed", range(12))
async def test_a_replay_reads_what_was_there_or_is_refused(redis, seed):
    """A version can be read just as long as all that it held is there; the current one always can.

    One at which there was nothing may be refused: nobody needs it.
    """
    model = Model(redis)
    await model.write()
    await _live_through(model, random.Random(seed), 40)
    assert await model.versions() == model.live
    assert model.whole_and_filled() <= await model.readable() <= model.whole()
    for version in model.whole():
        assert model.held_at[version] == {each for each in model.live if each <= version}


@pytest.mark.parametrize("max_ranges", [1000, 3])
@pytest.mark.parametrize("seed", range(8))
async def test_who_held_a_version_is_told_what_of_it_is_gone(redis, seed, max_ranges):
    """The ranges since a version have all that it lost and nothing that is there; or one has to begin anew."""
    model = Model(redis, max_ranges=max_ranges)
    await model.write()
    await _live_through(model, random.Random(seed), 40)
    num_told = 0
    for since, held in model.held_at.items():
        told = await model.store.read_forgotten(MEMORY, since)
        if since < told.floor:
            continue
        num_told += 1
        gone = {each for each in held if any(first <= each <= last for first, last in told.ranges)}
        assert gone == held - model.live
    assert num_told > 0


@pytest.mark.parametrize("seed", range(6))
async def test_with_few_ranges_no_replay_is_wrong(redis, seed):
    """Where old acts are told as one, more is refused, and what is read is still what was there."""
    model, rng = Model(redis, max_ranges=3), random.Random(seed)
    await model.write(30)
    for _ in range(20):
        await model.forget([rng.choice(sorted(model.live)[5:])])
        await model.write(rng.randint(0, 2))
    assert await redis.zcard(forgotten_key(MEMORY)) <= 3
    assert await model.readable() <= model.whole()
    assert model.version in await model.readable()


async def test_forgetting_the_oldest_again_and_again_is_one_range(redis):
    """What is noted of a memory that only ever loses its oldest entries does not grow."""
    model = Model(redis)
    await model.write(40)
    for version in range(1, 30):
        await model.forget([version])
    assert await redis.zcard(forgotten_key(MEMORY)) == 1
    assert await model.readable() == model.whole() == {0, 69}


async def test_an_act_that_is_sent_again_is_one(redis):
    """A lost connection repeats a call: it answers as the first did, and takes no second version."""
    model = Model(redis)
    await model.write(5)
    forgetter = model.forgetter
    for name in ("_forget", "_clear"):
        setattr(forgetter, name, _sent_twice(getattr(forgetter, name)))
    assert await forgetter.forget_versions(MEMORY, [2, 3]) == Forgotten(2, 6)
    assert await forgetter.forget_all(MEMORY) == Forgotten(3, 7)
    assert await forgetter.forget_all(MEMORY) == Forgotten(0, 8)
    await model.write()
    assert await forgetter.delete(MEMORY) == Forgotten(1, 7)


def _sent_twice(script):
    async def call(*arguments):
        await script(*arguments)
        return await script(*arguments)

    return call


async def test_many_are_forgotten_by_pages(redis):
    """More than one call of the script takes: each once, and those that are not there are passed over."""
    model = Model(redis)
    await model.write(1300)
    answer = await model.forgetter.forget_versions(MEMORY, [*range(1, 1201), 5, 5000])
    assert answer.num_entries == 1200
    assert await model.versions() == set(range(1201, 1301))
    assert await redis.zcard(remains_key(MEMORY.tenant_id)) == 1200
    assert await redis.zscore(FORGETTING_KEY, "acme") == BASE_MS


async def test_images_are_found_wherever_they_are(redis):
    """By their ids, in any page of the log; one that is not in the memory is passed over."""
    model = Model(redis)
    await model.write(1200)
    answer = await model.forgetter.forget_images(MEMORY, [_image(3), _image(1199), _image(7000)])
    assert (answer.num_entries, answer.version) == (2, 1201)
    assert await model.versions() == model.live - {3, 1199}


async def test_what_is_older_than_a_time_is_forgotten(redis):
    """All of it and nothing else, though the clocks of workers differ by some minutes."""
    model = Model(redis)

    def time_of(number):
        return BASE_MS + 1000 * number + (-1) ** number * 120_000

    await model.write(1100, time_of=time_of)
    at_ms = BASE_MS + 600_000
    old = {version for version in model.live if time_of(version) < at_ms}
    answer = await model.forgetter.forget_before(MEMORY, at_ms)
    assert answer.num_entries == len(old)
    assert await model.versions() == model.live - old
    assert (await model.forgetter.forget_before(MEMORY, BASE_MS - CLOCK_SLACK_MS)).num_entries == 0


async def test_an_entry_that_cannot_be_read_can_be_forgotten(redis):
    """By its version, and as something that is older than any time."""
    model = Model(redis)
    await model.write(2)
    for broken in (3, 4):
        await redis.xadd(log_key(MEMORY), {"e": b"x" * broken}, id=f"{broken}-0")
    await redis.hset(meta_key(MEMORY), "version", 4)
    assert (await model.forgetter.forget_versions(MEMORY, [3])).num_entries == 1
    assert (await model.forgetter.forget_before(MEMORY, 1)).num_entries == 1
    assert await model.versions() == {1, 2}


async def test_a_deleted_memory_is_not_found_and_its_versions_do_not_come_back(redis):
    """Nor can it be forgotten twice. One of its name that is made later has no version that an older one had."""
    model = Model(redis)
    await model.write(3)
    assert (await model.forgetter.delete(MEMORY)).num_entries == 3
    for call in (model.forgetter.delete(MEMORY), model.forgetter.forget_versions(MEMORY, [1])):
        with pytest.raises(NotFound):
            await call
    with pytest.raises(NotFound):
        await MemoryOverview(redis).get(MEMORY)
    assert await redis.ttl(meta_key(MEMORY)) > 86_400
    with pytest.raises(VersionGone):
        await model.store.resolve_version(MEMORY, 2)
    assert (await model.store.resolve_version(MEMORY, None)).version == 4


async def test_a_memory_that_never_was_cannot_be_forgotten(redis):
    """Nor one of another tenant: nothing is written, of any kind."""
    model = Model(redis)
    await model.write(1)
    other = MemoryKey(TenantId("bolt"), MEMORY.latent_space, MEMORY.name)
    calls = (
        model.forgetter.forget_all(other),
        model.forgetter.delete(other),
        model.forgetter.forget_images(other, [_image(1)]),
        model.forgetter.forget_before(other, BASE_MS * 2),
    )
    for call in calls:
        with pytest.raises(NotFound):
            await call
    assert await model.versions() == {1}
    assert await redis.exists(FORGETTING_KEY, remains_key(other.tenant_id)) == 0
