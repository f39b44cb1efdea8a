"""A tenant's memories against a plain model of them: made, written, forgotten, forked, renamed, carried, deleted at random.

Jobs are begun at one moment and committed at another, whatever happened to their memory meanwhile.
"""

import random
from dataclasses import dataclass, field, replace

import pytest

from app.domain.ids import ImportId, LatentSpace, MemoryName, ModelId, TenantId, WorkerId
from app.errors import InvalidRequest, MemoryExists, NotFound, VersionGone
from app.memory.archive import ArchiveReader, EndRead, EntriesRead, HeadRead
from app.memory.codec import decode_entry
from app.memory.exporting import MemoryExporter
from app.memory.forgetting import MemoryForgetter
from app.memory.forking import MemoryForker
from app.memory.importing import ImportLimits, ImportRecord, MemoryImporter
from app.memory.keys import MemoryKey
from app.memory.making import MemoryMaker
from app.memory.overview import MemoryOverview

pytestmark = pytest.mark.anyio

MODELS = (ModelId("toy"),)
TENANT = TenantId("acme")


@dataclass
class _Memory:
    """What one holds by versions, what it held whenever it stood at a version, and when something was forgotten last."""

    version: int = 0
    entries: dict = field(default_factory=dict)
    held: dict = field(default_factory=dict)
    forget_version: int = 0
    num_cleared: int = 0

    def note(self):
        self.held[self.version] = dict(self.entries)

    def forget(self, versions):
        self.version += 1
        self.forget_version = self.version
        self.entries = {version: data for version, data in self.entries.items() if version not in versions}
        self.note()

    def up_to(self, version):
        """A copy as of a version."""
        then = max(version, self.forget_version)
        entries = {at: data for at, data in self.entries.items() if at <= version}
        held = {at: found for at, found in self.held.items() if at <= version}
        copy = _Memory(then, entries, held, self.forget_version)
        copy.note()
        return copy


@dataclass
class _Tomb:
    """What is remembered of a name that no memory has: its version, and where the memory went that had it."""

    version: int
    renamed_to: str | None = None


class _World:
    """The service's stores beside the model of what they hold."""

    def __init__(self, bench, dice):
        redis, clock = bench.redis, bench.clock_ms
        self.bench, self.dice = bench, dice
        self.there, self.tombs, self.running = {}, {}, []
        self.space = LatentSpace(bench.memory().latent_space)
        self.queue, self.num_imports, self.num_renamed = bench.queue(), 0, 0
        self.maker = MemoryMaker(redis, max_memories=1000, clock_ms=clock)
        self.forker = MemoryForker(redis, max_memories=1000, clock_ms=clock)
        self.forgetter = MemoryForgetter(redis, clock_ms=clock, max_ranges=5)
        self.exporter, self.overview = MemoryExporter(redis), MemoryOverview(redis)
        self.importer = MemoryImporter(redis, ImportLimits(60, 999), clock_ms=clock)

    def key(self, name):
        return MemoryKey(TENANT, self.space, MemoryName(name))

    def any_memory(self):
        return self.dice.choice(sorted(self.there)) if self.there else None

    def any_name(self):
        """A new one, or one that is or was there."""
        known = sorted({*self.there, *self.tombs})
        if not known or self.dice.random() < 0.3:
            return f"m{len(known)}"
        return self.dice.choice(known)

    def had_version(self, name):
        return self.there[name].version if name in self.there else self.tombs.get(name, _Tomb(0)).version

    def put(self, name, memory):
        self.tombs.pop(name, None)
        self.there[name] = memory

    async def create(self):
        name = self.any_name()
        if name in self.there:
            with pytest.raises(MemoryExists):
                await self.maker.create(self.key(name), {})
            return
        await self.maker.create(self.key(name), {})
        self.put(name, _Memory(self.had_version(name)))

    async def begin(self):
        """Reserves a job and has it read a memory that is there."""
        name = self.any_memory()
        if name is None or len(self.running) > 3:
            return
        await self.bench.store().accept(self.bench.job(num_images=self.dice.randint(1, 3)))
        [reserved] = await self.queue.reserve(MODELS, WorkerId("w"), 1, 0)
        point = await self.bench.memories().resolve_version(self.key(name), None)
        memory = self.there[name]
        self.running.append((reserved, name, point, memory, memory.num_cleared))

    async def commit(self):
        """Ends one of the jobs that run: in the memory that it had read, if that was not emptied since."""
        if not self.running:
            return
        reserved, name, point, memory, num_cleared = self.running.pop(self.dice.randrange(len(self.running)))
        entries = self.bench.entries(reserved)
        result = replace(self.bench.result(reserved), memory_name=MemoryName(name))
        await self.queue.commit(reserved, result, entries, seen_version=point.current)
        if memory.num_cleared == num_cleared:
            for entry in entries:
                memory.version += 1
                memory.entries[memory.version] = entry
            memory.note()
            now = next(at for at, there in self.there.items() if there is memory)
            record = await self.bench.store().get(TENANT, reserved.job.job_id)
            assert record.result.memory_name == now

    async def write(self):
        """A job from its beginning to its end, in a memory that need not be there."""
        name = self.any_name()
        await self.bench.store().accept(self.bench.job(num_images=self.dice.randint(1, 3)))
        [reserved] = await self.queue.reserve(MODELS, WorkerId("w"), 1, 0)
        point = await self.bench.memories().resolve_version(self.key(name), None)
        assert point.version == (0 if name not in self.there else point.current) or name not in self.there
        entries = self.bench.entries(reserved)
        result = replace(self.bench.result(reserved), memory_name=MemoryName(name))
        await self.queue.commit(reserved, result, entries, seen_version=point.current)
        if name not in self.there:
            self.put(name, _Memory(self.had_version(name)))
        memory = self.there[name]
        for entry in entries:
            memory.version += 1
            memory.entries[memory.version] = entry
        memory.note()

    async def forget(self):
        name = self.any_memory()
        if name is None or not self.there[name].entries:
            return
        memory = self.there[name]
        versions = self.dice.sample(sorted(memory.entries), min(len(memory.entries), self.dice.randint(1, 3)))
        forgotten = await self.forgetter.forget_versions(self.key(name), versions)
        memory.forget(versions)
        assert (forgotten.num_entries, forgotten.version) == (len(versions), memory.version)

    async def forget_everywhere(self):
        name = self.any_memory()
        if name is None or not self.there[name].entries:
            return
        image = decode_entry(self.dice.choice(list(self.there[name].entries.values()))).image_id
        await self.forgetter.forget_images_everywhere(self.key(name), [image])
        for memory in self.there.values():
            of_it = [at for at, data in memory.entries.items() if decode_entry(data).image_id == image]
            if of_it:
                memory.forget(of_it)

    async def clear(self):
        name = self.any_memory()
        if name is not None:
            await self.forgetter.forget_all(self.key(name))
            self.there[name].forget(set(self.there[name].entries))
            self.there[name].num_cleared += 1

    async def delete(self):
        name = self.any_memory()
        if name is not None:
            await self.forgetter.delete(self.key(name))
            memory = self.there.pop(name)
            memory.num_cleared += 1
            self.tombs[name] = _Tomb(memory.version + 1)

    async def fork(self):
        source, target = self.any_memory(), self.any_name()
        if source is None:
            return
        version = self.dice.choice([None, self.dice.randint(0, self.there[source].version)])
        call = self.forker.fork(self.key(source), self.key(target), version)
        if target in self.there or self.had_version(target):
            with pytest.raises(MemoryExists):
                await call
            return
        await call
        of = self.there[source]
        self.put(target, of.up_to(of.version if version is None else version))

    async def rename(self):
        old, new = self.any_memory(), self.any_name()
        if old is None:
            return
        left = [name for name, tomb in self.tombs.items() if tomb.renamed_to == old]
        if left and self.dice.random() < 0.5:
            new = self.dice.choice(left)
        tomb = self.tombs.get(new, _Tomb(0))
        call = self.maker.rename(self.key(old), MemoryName(new))
        if new in self.there or (tomb.version and tomb.renamed_to != old):
            with pytest.raises(MemoryExists):
                await call
            return
        await call
        memory = self.there.pop(old)
        memory.version = max(memory.version, tomb.version)
        self.put(new, memory)
        self.tombs[old] = _Tomb(memory.version + 1, new)
        self.num_renamed += 1

    async def carry(self):
        """Out as an archive and in under another name."""
        source, target = self.any_memory(), self.any_name()
        if source is None:
            return
        export = await self.exporter.begin(self.key(source))
        data = b"".join([chunk async for chunk in self.exporter.write(export)])
        self.num_imports += 1
        call = self._take(ArchiveReader().feed(data), ImportId(f"imp_{self.num_imports:028x}"), target)
        if self.had_version(target):
            with pytest.raises(MemoryExists):
                await call
            return
        await call
        of = self.there[source]
        self.put(target, of.up_to(of.version))

    async def _take(self, reads, import_id, name):
        for read in reads:
            if isinstance(read, HeadRead):
                record = ImportRecord(import_id, MemoryName(name), read.header, read.progress)
                await self.importer.begin(TENANT, record)
            elif isinstance(read, EntriesRead):
                record = await self.importer.write(TENANT, record, read.entries, read.progress)
            elif isinstance(read, EndRead):
                await self.importer.publish(TENANT, record, read.end, read.progress)

    async def check(self):
        """Listing, counts, versions and entries are the model's; what can be read of a version is what it was."""
        page = await self.overview.list_memories(TENANT, 100)
        found = {stats.memory.name: (stats.version, stats.num_entries) for stats in page.memories}
        assert found == {name: (memory.version, len(memory.entries)) for name, memory in self.there.items()}
        assert await self.overview.count_entries(TENANT) == sum(
            len(memory.entries) for memory in self.there.values()
        )
        for name, memory in self.there.items():
            log = dict(await self.bench.memories().read_after(self.key(name), 0, 10_000))
            assert log == memory.entries, name
            for version in self.dice.sample(sorted(memory.held), min(3, len(memory.held))):
                try:
                    point = await self.bench.memories().resolve_version(self.key(name), version)
                except (VersionGone, InvalidRequest):
                    continue
                read = {at: data for at, data in log.items() if at <= point.version}
                assert read == memory.held[version], (name, version)
            assert await self.bench.memories().resolve_version(self.key(name), memory.version)
        for name in self.tombs:
            with pytest.raises(NotFound):
                await self.overview.get(self.key(name))


async def _live(bench, seed, num_steps):
    """Checks after every step; at the end all jobs are done, and nothing is left of a fork's making."""
    dice = random.Random(seed)
    world = _World(bench, dice)
    steps = [world.write, world.begin, world.commit, world.rename] * 4 + [world.forget, world.fork] * 2
    steps += [world.create, world.carry, world.forget_everywhere, world.clear, world.delete]
    for _ in range(num_steps):
        await dice.choice(steps)()
        await world.check()
    while world.running:
        await world.commit()
    await world.check()
    assert world.num_renamed > 0
    assert not [name async for name in bench.redis.scan_iter("*memory-fork*")]


@pytest.mark.parametrize("seed", range(4))
async def test_memories_are_what_the_model_says(bench, seed):
    """After every step of a hundred."""
    await _live(bench, seed, 100)


async def test_on_redis_6_2(redis_6_2, make_bench):
    """The oldest server that we promise; its streams share nodes."""
    await redis_6_2.config_set("stream-node-max-entries", 100)
    await _live(make_bench(redis_6_2), 11, 50)


async def test_on_a_cluster_no_command_crosses_slots(cluster_node, make_bench):
    """Of a fork, a rename and all else."""
    await _live(make_bench(cluster_node), 12, 50)
