"""Several memories are read as one: the same entries, each once, and replays of all of them."""

import io

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from app.domain.ids import MemoryName
from app.domain.job import JobState
from app.domain.request import MemoryReading, MemorySelection
from app.worker.course.png import read_metadata
from app.worker.memory.host_memory import HostMemory, NeighbourQuery, select_together
from tests.host_rows import HostEntry, stacked

PROMPT = np.eye(4, dtype=np.float16)[0]


def _entry(version, number):
    rng = np.random.default_rng(number)
    near = PROMPT + 0.2 * rng.normal(size=4)
    prompt = (near / np.linalg.norm(near)).astype(np.float16)
    return HostEntry(version, 1 + number, rng.normal(size=3).astype(np.float16), prompt)


def _memory_of(numbers):
    memory = HostMemory(3, 4)
    memory.append(stacked([_entry(version, number) for version, number in enumerate(numbers, start=1)]))
    return memory


def _query(version, cap):
    return NeighbourQuery(PROMPT.astype(np.float32), version, 0.9, 5.0, cap)


def _rows(chosen):
    return sorted(map(bytes, np.concatenate([chosen.features, chosen.prompt_embeddings], axis=1)))


@settings(deadline=None, max_examples=100)
@given(
    memories=st.lists(st.lists(st.integers(0, 40), unique=True, max_size=30), min_size=1, max_size=4),
    cap=st.integers(0, 60),
)
def test_they_are_one_memory_of_all_entries(memories, cap):
    """Of images in several each counts once; below the cap the choice is that of one memory, above it as many, to the same sum."""
    parts = [(_memory_of(numbers), _query(len(numbers), cap)) for numbers in memories]
    chosen = select_together(parts)
    union = list(dict.fromkeys(number for numbers in memories for number in numbers))
    one = _memory_of(union).select(_query(len(union), cap))
    assert chosen.num_qualified == one.num_qualified
    assert len(chosen.versions) == len(one.versions)
    if one.num_qualified <= cap:
        assert _rows(chosen) == _rows(one)
        assert (chosen.weights == 1).all()
    elif cap > 0:
        sums = [
            float(
                (each.weights * np.exp(5.0 * (each.prompt_embeddings @ PROMPT.astype(np.float32) - 1))).sum()
            )
            for each in (chosen, one)
        ]
        assert sums[0] == pytest.approx(sums[1], rel=1e-4)


def test_the_draw_is_another_one_for_every_version_of_any():
    """The same versions give the same bits; one more version of either gives others."""
    memories = [_memory_of(range(40)), _memory_of(range(40, 80))]

    def choose(*versions):
        parts = [(memory, _query(version, 10)) for memory, version in zip(memories, versions, strict=True)]
        return select_together(parts).features.tobytes()

    assert choose(30, 30) == choose(30, 30)
    assert len({choose(30, 30), choose(31, 30), choose(30, 31)}) == 3


def test_what_is_forgotten_in_one_is_not_chosen_of_it():
    """Nor does its zero hide the image where another memory holds it."""
    one, other = _memory_of(range(5)), _memory_of([2])
    one.drop([(3, 3)])  # the image 2
    chosen = select_together([(one, _query(5, 99)), (other, _query(1, 99))])
    assert _rows(chosen) == _rows(_memory_of(range(5)).select(_query(5, 99)))


pytest_anyio = pytest.mark.anyio


def _into(name, **more):
    return MemorySelection(name=MemoryName(name), **more)


def _also(*names, **more):
    readings = tuple(MemoryReading(MemoryName(name)) for name in names)
    return MemorySelection(write=False, also=readings, **more)


@pytest_anyio
async def test_a_job_is_pushed_away_from_all_of_them(bench, make_job):
    """With its own memory, or without; the answer and the file tell the versions, and a replay of these is the same image."""
    for number, (name, num_images) in enumerate([("default", 1), ("brand", 2), ("archive", 3)], start=1):
        await bench.run(make_job(number, num_images=num_images, seed=100 * number, memory=_into(name)))
    (record,) = await bench.run(make_job(4, seed=9, memory=_also("brand", "archive")))
    (image,) = record.result.images
    assert (image.num_neighbours, record.result.memory_version, record.result.also_versions) == (6, 1, (2, 3))
    metadata = read_metadata((await bench.pngs(record))[0])
    assert [(memory.name, memory.version) for memory in metadata.also] == [("brand", 2), ("archive", 3)]
    (others,) = await bench.run(make_job(5, seed=9, memory=_also("archive", read=False)))
    assert others.result.images[0].num_neighbours == 3
    await bench.run(make_job(6, num_images=4, seed=700, memory=_into("brand")))
    then = MemorySelection(
        write=False,
        version=1,
        also=(MemoryReading(MemoryName("brand"), 2), MemoryReading(MemoryName("archive"), 3)),
    )
    (again,) = await bench.run(make_job(7, seed=9, memory=then))
    (anew,) = await bench.run(make_job(8, seed=9, memory=_also("brand", "archive")))
    assert again.result.images[0].num_neighbours == 6
    assert anew.result.images[0].num_neighbours == 10
    pixels = [await _decoded(bench, each) for each in (record, again, anew)]
    assert pixels[0] == pixels[1] != pixels[2]


async def _decoded(bench, record):
    return [Image.open(io.BytesIO(png)).tobytes() for png in await bench.pngs(record)]


@pytest_anyio
async def test_only_the_first_is_written(bench, make_job):
    """What is read with it stays as it is."""
    await bench.run(make_job(1, memory=_into("brand")))
    also = (MemoryReading(MemoryName("brand")),)
    await bench.run(make_job(2, memory=_into("mine", also=also)))
    assert (await bench.version(name="mine"), await bench.version(name="brand")) == (1, 1)


@pytest_anyio
async def test_one_that_has_held_nothing_is_named(bench, make_job):
    """A name with a slip would else be read for ever without effect; so is a version that is not there yet."""
    await bench.run(make_job(1, memory=_into("brand")))
    (slip,) = await bench.run(make_job(2, memory=_also("brand", "bran")))
    assert (slip.state, slip.failure.code) == (JobState.FAILED, "reference_not_found")
    assert slip.failure.param == "diversity.memory.also.1.name"
    future = MemorySelection(also=(MemoryReading(MemoryName("brand"), 7),))
    (early,) = await bench.run(make_job(3, memory=future))
    assert (early.failure.code, early.failure.param) == ("invalid_request", "diversity.memory.also.0.version")


@pytest_anyio
async def test_another_tenants_memory_is_not_among_them(bench, make_job):
    """The name is looked for among the tenant's own."""
    await bench.run(make_job(1, tenant="b", memory=_into("brand")))
    (record,) = await bench.run(make_job(2, tenant="a", memory=_also("brand")))
    assert record.failure.code == "reference_not_found"
