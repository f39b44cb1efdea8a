"""Novelty and context from Redis to the engine, with the weightless engine and a real Redis."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from app.domain.ids import MemoryName
from app.domain.job import JobState
from app.domain.request import MemorySelection, ReferenceSelection
from app.worker.course.png import read_metadata
from app.worker.memory.host_memory import HostMemory
from app.worker.memory.memory_cache import Dimensions
from app.worker.memory.neighbours import reference_query, to_entries
from sparke_engine.diffusion.toy import ToyEngine
from sparke_engine.guidance.presets import preset_named
from tests.host_rows import HostEntry, stacked

pytestmark = pytest.mark.anyio

FROZEN = MemorySelection(name=MemoryName("own"), write=False)
BRAND = ReferenceSelection(MemoryName("brand"), 0.5)


class NotingEngine(ToyEngine):
    """The toy, and every group that it was given."""

    def __init__(self):
        super().__init__(preset_named("toy"))
        self.groups = []

    def generate(self, groups, plan, on_step):
        """Note the groups, then do as the toy does."""
        self.groups += groups
        return super().generate(groups, plan, on_step)


def _into(name):
    return MemorySelection(name=MemoryName(name))


async def _pixels(bench, record):
    return [Image.open(io.BytesIO(png)).tobytes() for png in await bench.pngs(record)]


async def test_references_reach_the_engine_with_their_signs(open_bench, make_job):
    """All entries of each, whatever their prompts; novelty at its weight, context at minus its own."""
    engine = NotingEngine()
    bench = open_bench(engine=engine)
    await bench.run(make_job(1, num_images=3, prompt="a cat", memory=_into("brand")))
    await bench.run(make_job(2, num_images=2, prompt="a dog", memory=_into("brand")))
    await bench.run(make_job(3, num_images=2, prompt="a cow", memory=_into("published")))
    novelty = ReferenceSelection(MemoryName("published"), 0.75)
    (record,) = await bench.run(make_job(4, prompt="a star", memory=FROZEN, novelty=novelty, context=BRAND))
    away, toward = engine.groups[-1].references
    assert (away.weight, away.entries.num_entries) == (0.75, 2)
    assert (toward.weight, toward.entries.num_entries) == (-0.5, 5)
    assert (record.result.novelty_version, record.result.context_version) == (2, 5)
    assert record.result.images[0].num_neighbours == 0, "references are no neighbours"
    metadata = read_metadata((await bench.pngs(record))[0])
    assert (metadata.novelty.name, metadata.novelty.version, metadata.novelty.weight) == (
        "published",
        2,
        0.75,
    )
    assert (metadata.context.name, metadata.context.version, metadata.context.weight) == ("brand", 5, 0.5)


async def test_a_weight_of_zero_is_no_reference(open_bench, make_job):
    """It is looked up and its version told, but the engine gets none, and the pixels are those without it."""
    engine = NotingEngine()
    bench = open_bench(engine=engine)
    await bench.run(make_job(1, num_images=3, memory=_into("brand")))
    (without,) = await bench.run(make_job(2, strength=0, memory=FROZEN))
    nothing = ReferenceSelection(MemoryName("brand"), 0.0)
    (record,) = await bench.run(make_job(3, strength=0, memory=FROZEN, context=nothing))
    assert engine.groups[-1].references == ()
    assert record.result.context_version == 3
    assert await _pixels(bench, record) == await _pixels(bench, without)


@pytest.mark.parametrize("strength", [0.0, 0.5])
async def test_a_pinned_version_gives_the_same_pixels(bench, make_job, strength):
    """After more images in the reference, its version as the result told it replays the image; without it, others."""
    await bench.run(make_job(1, num_images=3, memory=_into("brand")))
    (original,) = await bench.run(
        make_job(2, strength=strength, num_images=2, memory=FROZEN, context=BRAND, seed=5)
    )
    await bench.run(make_job(3, num_images=4, seed=50, memory=_into("brand")))
    version = original.result.context_version
    pinned = ReferenceSelection(BRAND.name, BRAND.weight, version)
    (again,) = await bench.run(
        make_job(4, strength=strength, num_images=2, memory=FROZEN, context=pinned, seed=5)
    )
    (anew,) = await bench.run(
        make_job(5, strength=strength, num_images=2, memory=FROZEN, context=BRAND, seed=5)
    )
    assert version == again.result.context_version == 3
    assert await _pixels(bench, again) == await _pixels(bench, original)
    assert await _pixels(bench, anew) != await _pixels(bench, original)
    assert anew.result.context_version == 7


async def test_another_tenants_memory_of_that_name_is_never_read(bench, make_job):
    """Tenant B's images in a memory of the same name change no bit of tenant A's, and are nothing to refer to."""
    await bench.run(make_job(1, tenant="a", num_images=2, memory=_into("brand")))
    members = {"strength": 0.0, "memory": FROZEN, "context": BRAND, "seed": 5}
    (before,) = await bench.run(make_job(2, tenant="a", **members))
    await bench.run(make_job(3, tenant="b", num_images=5, prompt="a dog", memory=_into("brand")))
    (after,) = await bench.run(make_job(4, tenant="a", **members))
    assert await _pixels(bench, before) == await _pixels(bench, after)
    assert after.result.context_version == 2
    (stranger,) = await bench.run(make_job(5, tenant="c", **members))
    assert stranger.failure.code == "reference_not_found"


@pytest.mark.parametrize("member", ["novelty", "context"])
async def test_a_reference_that_holds_nothing_fails_the_job_alone(bench, make_job, member):
    """The failure names the member; a batch-mate is made."""
    bad, good = await bench.run(make_job(1, **{member: BRAND}), make_job(2))
    assert (bad.state, good.state) == (JobState.FAILED, JobState.SUCCEEDED)
    assert (bad.failure.code, bad.failure.param) == ("reference_not_found", f"diversity.{member}.reference")
    assert "brand" in bad.failure.message
    assert "POST /v1/references" in bad.failure.message


async def test_a_version_that_is_not_there_yet_names_its_member(bench, make_job):
    """The memory has one entry; version 7 of it is the request's fault."""
    await bench.run(make_job(1, memory=_into("brand")))
    future = ReferenceSelection(MemoryName("brand"), 0.5, 7)
    (record,) = await bench.run(make_job(2, novelty=future))
    assert (record.failure.code, record.failure.param) == ("invalid_request", "diversity.novelty.version")


def test_above_the_cap_a_sample_stands_for_the_whole_reference():
    """A cap of its own bounds a reference, by a uniform draw that each version makes anew."""
    rng = np.random.default_rng(0)
    memory = HostMemory(4, 3)
    entries = [
        HostEntry(
            number,
            int(rng.integers(2**63)),
            rng.normal(size=4).astype(np.float16),
            rng.normal(size=3).astype(np.float16),
        )
        for number in range(1, 101)
    ]
    memory.append(stacked(entries))
    dimensions = Dimensions(4, 3)
    some = to_entries(memory.select(reference_query(10, dimensions, version=90)))
    every = to_entries(memory.select(reference_query(1000, dimensions, version=90)))
    assert (some.num_entries, every.num_entries) == (10, 90)
    assert (some.weights == 9).all()
    assert (every.weights == 1).all()
    other = to_entries(memory.select(reference_query(10, dimensions, version=91)))
    assert not torch.equal(some.features, other.features)
    assert torch.allclose(torch.linalg.vector_norm(every.features, dim=1), torch.ones(90), atol=1e-6)
