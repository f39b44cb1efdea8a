"""How a worker's copy of a memory follows its log."""

import random

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from app.domain.ids import LatentSpace, MemoryName, TenantId, image_id, make_job_id
from app.errors import StoreUnavailable
from app.memory.codec import MemoryEntry, encode_entry
from app.memory.keys import MemoryKey
from app.memory.store import ForgottenRanges
from app.telemetry.metrics import Metrics
from app.worker.memory.host_memory import NeighbourQuery
from app.worker.memory.memory_cache import PAGE_BYTES, PAGE_ENTRIES, Dimensions, MemoryCache

pytestmark = pytest.mark.anyio

DIMENSIONS = Dimensions(feature=4, prompt=3)
PROMPT = np.array([1, 0, 0], np.float32)


class ListLog:
    """Logs in lists; counts what is read, and can be away."""

    def __init__(self):
        self.logs = {}
        self.acts = []
        self.floor = 0
        self.next = 1
        self.num_read = 0
        self.limits = set()
        self.is_away = False

    def write(self, key, count, *, origin=0):
        """Append entries; another origin makes other entries."""
        log = self.logs.setdefault(key, [])
        for _ in range(count):
            version = max(self.next, len(log) + 1) if self.acts else len(log) + 1
            self.next = version + 1
            log.append((version, _entry_bytes(origin + version)))

    async def read_after(self, memory, version, limit=512):
        """As MemoryStore does."""
        if self.is_away:
            raise StoreUnavailable("away")
        self.limits.add(limit)
        page = [row for row in self.logs.get(memory, []) if row[0] > version][:limit]
        self.num_read += len(page)
        return page

    async def last_acts(self, memories):
        """As MemoryStore does, of the one memory that acts are of."""
        latest = max((version for version, _ in self.acts), default=0)
        return [latest for _ in memories]

    async def read_forgotten(self, _memory, since):
        """As MemoryStore does, of the acts in `acts`: version -> ranges."""
        later = [(version, ranges) for version, ranges in self.acts if version > since]
        latest = max((version for version, _ in self.acts), default=0)
        return ForgottenRanges(latest, self.floor, tuple(each for _, ranges in later for each in ranges))


def _entry_bytes(number, *, feature_dim=4):
    feature = np.random.default_rng(number).normal(size=feature_dim).astype(np.float16)
    made = image_id(make_job_id(number, bytes(8)), 0)
    return encode_entry(MemoryEntry(made, number, number, feature, PROMPT.astype(np.float16)))


def _metrics():
    return Metrics(CollectorRegistry())


def _key(tenant="acme", name="default"):
    return MemoryKey(TenantId(tenant), LatentSpace("toy"), MemoryName(name))


def _features(synced):
    return synced.memory.select(
        NeighbourQuery(PROMPT, synced.version, min_cosine=0.9, steepness=0.0, cap=10**6)
    ).features


async def _rebuilt(log, key):
    return await MemoryCache(log, budget_bytes=10**9, metrics=_metrics()).sync(key, DIMENSIONS)


@pytest.mark.parametrize("page_entries", [1, 2, 3, 100])
async def test_a_copy_follows_its_log_and_reads_only_the_tail(page_entries):
    """After growth the copy equals one built from nothing, for the price of the new entries and one more."""
    log, key = ListLog(), _key()
    cache = MemoryCache(log, budget_bytes=10**9, metrics=_metrics(), page_entries=page_entries)
    assert (await cache.sync(key, DIMENSIONS)).version == 0
    for grown in (1, 5, 0, 3):
        log.write(key, grown)
        log.num_read = 0
        synced = await cache.sync(key, DIMENSIONS)
        assert log.num_read <= grown + 1
        assert synced.version == len(log.logs[key])
        assert _features(synced).tobytes() == _features(await _rebuilt(log, key)).tobytes()


@pytest.mark.parametrize(
    ("feature_dim", "entries"),
    [(4, PAGE_ENTRIES), (65_536, 127), (PAGE_BYTES, 1)],
    ids=["few", "whole", "huge"],
)
async def test_a_page_is_bounded_in_bytes(feature_dim, entries):
    """Latents that are kept whole come in small pages, however long one is, and all of them come."""
    log, key, dimensions = ListLog(), _key(), Dimensions(feature=feature_dim, prompt=3)
    rows = [_entry_bytes(number, feature_dim=feature_dim) for number in range(2)]
    log.logs[key] = [(number + 1, rows[number % 2]) for number in range(5 if entries == 1 else 300)]
    cache = MemoryCache(log, budget_bytes=10**9, metrics=_metrics())
    synced = await cache.sync(key, dimensions)
    assert len(synced.memory) == len(log.logs[key])
    assert log.limits == {entries}


@pytest.mark.parametrize("after", [0, 2, 5, 9])
async def test_a_memory_that_was_recreated_is_built_again(after):
    """A shorter, equal or longer log of other entries under the same name never mixes with what was held."""
    log, key = ListLog(), _key()
    log.write(key, 5)
    cache = MemoryCache(log, budget_bytes=10**9, metrics=_metrics(), page_entries=2)
    old = await cache.sync(key, DIMENSIONS)
    log.logs[key] = []
    log.write(key, after, origin=100)
    synced = await cache.sync(key, DIMENSIONS)
    assert (synced.version, len(synced.memory)) == (after, after)
    assert _features(synced).tobytes() == _features(await _rebuilt(log, key)).tobytes()
    assert len(old.memory) == 5


async def test_the_least_recently_used_memory_goes_when_the_budget_is_spent():
    """What was used last stays, and what went comes back whole from its log."""
    log = ListLog()
    keys = [_key(name=name) for name in ("a", "b", "c")]
    for key in keys:
        log.write(key, 64)
    size_bytes = (await _rebuilt(log, keys[0])).memory.size_bytes
    cache = MemoryCache(log, budget_bytes=2 * size_bytes, metrics=_metrics())
    for key in (keys[0], keys[1], keys[0], keys[2]):
        await cache.sync(key, DIMENSIONS)
    assert (cache.num_memories, cache.size_bytes) == (2, 2 * size_bytes)
    log.num_read = 0
    await cache.sync(keys[0], DIMENSIONS)
    assert log.num_read == 1
    assert len((await cache.sync(keys[1], DIMENSIONS)).memory) == 64
    assert log.num_read == 65


async def test_a_memory_above_the_budget_is_still_served():
    """The one in use is never evicted, however large."""
    log, key = ListLog(), _key()
    log.write(key, 10)
    cache = MemoryCache(log, budget_bytes=1, metrics=_metrics())
    assert len((await cache.sync(key, DIMENSIONS)).memory) == 10


async def test_memories_of_two_tenants_never_mix():
    """Same name, same space, other tenant: another memory."""
    log = ListLog()
    log.write(_key("acme"), 3)
    cache = MemoryCache(log, budget_bytes=10**9, metrics=_metrics())
    assert (await cache.sync(_key("acme"), DIMENSIONS)).version == 3
    assert (await cache.sync(_key("other"), DIMENSIONS)).version == 0


async def test_a_corrupt_or_foreign_entry_is_left_out_alone():
    """One bad entry costs the tenant that entry and nothing else, and the copy still follows the log."""
    log, key = ListLog(), _key()
    log.write(key, 2)
    good = _entry_bytes(3)
    log.logs[key] += [(3, good[:-1] + b"\x00\x00"), (4, _entry_bytes(4, feature_dim=9))]
    metrics = _metrics()
    cache = MemoryCache(log, budget_bytes=10**9, metrics=metrics)
    synced = await cache.sync(key, DIMENSIONS)
    assert (synced.version, len(synced.memory)) == (4, 2)
    assert metrics.registry.get_sample_value("sparke_memory_entries_corrupt_total") == 2
    log.write(key, 1)
    synced = await cache.sync(key, DIMENSIONS)
    assert (synced.version, len(synced.memory)) == (5, 3)


async def test_an_outage_leaves_the_copy_whole():
    """StoreUnavailable reaches the caller, and the next sync goes on where the last one ended."""
    log, key = ListLog(), _key()
    log.write(key, 5)
    cache = MemoryCache(log, budget_bytes=10**9, metrics=_metrics())
    await cache.sync(key, DIMENSIONS)
    log.is_away = True
    with pytest.raises(StoreUnavailable):
        await cache.sync(key, DIMENSIONS)
    log.is_away = False
    log.write(key, 1)
    log.num_read = 0
    assert (await cache.sync(key, DIMENSIONS)).version == 6
    assert log.num_read == 2


async def test_another_dimension_builds_another_copy():
    """A preset that changes under its latent space's name never reads vectors of the wrong length."""
    log, key = ListLog(), _key()
    log.write(key, 3)
    cache = MemoryCache(log, budget_bytes=10**9, metrics=_metrics())
    await cache.sync(key, DIMENSIONS)
    synced = await cache.sync(key, Dimensions(feature=9, prompt=3))
    assert (synced.version, len(synced.memory)) == (3, 0)


def _forget(log, key, *versions):
    """An act of forgetting, with a version of its own, as MemoryForgetter does it."""
    log.logs[key] = [row for row in log.logs[key] if row[0] not in versions]
    act = max([log.next - 1, *(version for version, _ in log.acts)]) + 1
    log.acts.append((act, [(version, version) for version in versions]))
    log.next = act + 1
    return act


@pytest.mark.parametrize("page_entries", [1, 2, 100])
@pytest.mark.parametrize("seed", range(4))
async def test_what_is_forgotten_leaves_the_copy(seed, page_entries):
    """After any acts, also on the newest entry, the copy equals one built from nothing, for the price of the tail."""
    rng, log, key = random.Random(seed), ListLog(), _key()
    log.write(key, 20)
    cache = MemoryCache(log, budget_bytes=10**9, metrics=_metrics(), page_entries=page_entries)
    await cache.sync(key, DIMENSIONS)
    for _ in range(12):
        act = 0
        for _ in range(rng.randint(0, 3)):
            live = [version for version, _ in log.logs[key]]
            act = _forget(log, key, *rng.sample(live, min(2, len(live))), live[-1])
            log.write(key, rng.randint(1, 3))
        log.num_read = 0
        known = max((version for version, _ in log.acts), default=0)
        synced = await cache.sync(key, DIMENSIONS, forget_version=act or known)
        assert log.num_read <= 12
        assert len(synced.memory) == len(log.logs[key])
        assert _features(synced).tobytes() == _features(await _rebuilt(log, key)).tobytes()


async def test_what_was_forgotten_since_the_version_was_asked_for_is_no_other_log():
    """The newest entry may vanish between two looks: the rest of the copy stays, and is not read again."""
    log, key = ListLog(), _key()
    log.write(key, 50)
    cache = MemoryCache(log, budget_bytes=10**9, metrics=_metrics())
    await cache.sync(key, DIMENSIONS)
    _forget(log, key, 50)
    log.num_read = 0
    assert len((await cache.sync(key, DIMENSIONS, forget_version=0)).memory) == 49
    assert log.num_read == 0


@pytest.mark.parametrize(("floor", "acts"), [(52, [(53, [])]), (0, [])])
async def test_who_cannot_tell_what_was_forgotten_begins_anew(floor, acts):
    """Where old acts are told no more, or Redis knows fewer than were followed: all is read again."""
    log, key = ListLog(), _key()
    log.write(key, 50)
    cache = MemoryCache(log, budget_bytes=10**9, metrics=_metrics())
    await cache.sync(key, DIMENSIONS)
    act = _forget(log, key, 10)
    await cache.sync(key, DIMENSIONS, forget_version=act)
    log.logs[key] = [row for row in log.logs[key] if row[0] != 20]
    log.acts, log.floor, log.num_read = acts, floor, 0
    synced = await cache.sync(key, DIMENSIONS, forget_version=acts[0][0] if acts else 0)
    assert (len(synced.memory), log.num_read) == (48, 48)


async def test_a_deleted_tenants_copies_are_dropped():
    """All of them, and no other tenant's; the bytes are free, and what is read anew is what the log has by then."""
    log, metrics = ListLog(), _metrics()
    cache = MemoryCache(log, budget_bytes=10**9, metrics=metrics)
    for key in (_key(), _key(name="other"), _key("acme2")):
        log.write(key, 5)
        await cache.sync(key, DIMENSIONS)
    size_bytes = cache.size_bytes
    assert cache.drop({TenantId("acme")}) == 2
    assert (cache.num_memories, cache.size_bytes) == (1, size_bytes // 3)
    assert metrics.registry.get_sample_value("sparke_memory_cache_bytes") == cache.size_bytes
    assert cache.drop({TenantId("acme")}) == 0
    log.logs.clear()
    assert (await cache.sync(_key(), DIMENSIONS)).version == 0


async def test_the_bytes_that_are_counted_are_those_that_are_held():
    """After growth, forgetting, eviction, another dimension and a deleted tenant the sum is that of what is held."""
    log = ListLog()
    keys = [_key(tenant, name) for tenant in ("acme", "other") for name in ("a", "b")]
    cache = MemoryCache(log, budget_bytes=60_000, metrics=_metrics())
    for number in range(40):
        key = keys[number * 7 % 4]
        log.write(key, 50)
        await cache.sync(key, DIMENSIONS if number % 9 else Dimensions(feature=9, prompt=3))
        if number == 20:
            cache.drop({TenantId("other")})
        if number == 30:
            _forget(log, key, *[version for version, _ in log.logs[key][:-3]])
            await cache.drop_forgotten()
        assert cache.size_bytes == sum(slot.memory.size_bytes for slot in cache._slots.values())
        assert cache.size_bytes <= 60_000 or cache.num_memories == 1


async def test_lookups_and_evictions_are_told():
    """From nothing, with nothing new, with a tail, with something forgotten, of another log; and what had to go."""
    log, key, metrics = ListLog(), _key(), _metrics()
    cache = MemoryCache(log, budget_bytes=1, metrics=metrics)

    def told():
        value = metrics.registry.get_sample_value
        outcomes = ("hit", "tail", "snapshot", "log")
        return [
            int(value("sparke_memory_cache_lookups_total", {"outcome": outcome}) or 0) for outcome in outcomes
        ]

    log.write(key, 5)
    await cache.sync(key, DIMENSIONS)
    assert told() == [0, 0, 0, 1]
    await cache.sync(key, DIMENSIONS)
    assert told() == [1, 0, 0, 1]
    log.write(key, 2)
    await cache.sync(key, DIMENSIONS)
    assert told() == [1, 1, 0, 1]
    log.acts.append((8, [(2, 3)]))
    log.next = 9
    await cache.sync(key, DIMENSIONS, forget_version=8)
    assert told() == [1, 2, 0, 1]
    log.acts.clear()
    log.logs[key] = []
    log.write(key, 9, origin=100)
    await cache.sync(key, DIMENSIONS)
    assert told() == [1, 2, 0, 2]
    evicted = metrics.registry.get_sample_value
    assert evicted("sparke_memory_cache_evictions_total") == 0
    log.write(_key("other"), 3)
    await cache.sync(_key("other"), DIMENSIONS)
    assert told() == [1, 2, 0, 3]
    assert evicted("sparke_memory_cache_evictions_total") == 1
    await cache.sync(key, DIMENSIONS)
    assert told() == [1, 2, 0, 4]
