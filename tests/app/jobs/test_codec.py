"""JSON of jobs, results and records."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.ids import DEFAULT_TENANT, ImageId, LatentSpace, LoraName, MemoryName, ModelId, make_job_id
from app.domain.job import Job, JobKind, JobState
from app.domain.lora import LoraSelection
from app.domain.request import (
    MAX_SEED,
    Diversity,
    Edit,
    GenerationRequest,
    MemorySelection,
    ReferenceSelection,
)
from app.domain.result import Failure, GeneratedImage, GenerationResult
from app.errors import CorruptRecord
from app.jobs import codec
from app.redis.records import decode

_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
_TEXTS = st.text(st.characters(codec="utf-8"))
_REFERENCES = st.none() | st.builds(
    ReferenceSelection,
    name=st.just(MemoryName("brand")),
    weight=_FLOATS,
    version=st.none() | st.integers(1, MAX_SEED),
)
_JOBS = st.builds(
    Job,
    tenant_id=st.just(DEFAULT_TENANT),
    job_id=st.binary(min_size=8, max_size=8).map(lambda noise: make_job_id(5, noise)),
    kind=st.sampled_from([JobKind.GENERATE, JobKind.EDIT]),
    request=st.builds(
        GenerationRequest,
        model=st.just(ModelId("toy")),
        prompt=_TEXTS,
        negative_prompt=_TEXTS,
        guidance_scale=_FLOATS,
        seed=st.integers(0, MAX_SEED),
        loras=st.lists(
            st.builds(LoraSelection, name=st.just(LoraName("ink")), scale=_FLOATS), max_size=2
        ).map(tuple),
        diversity=st.builds(
            Diversity,
            strength=_FLOATS,
            memory=st.builds(MemorySelection),
            novelty=_REFERENCES,
            context=_REFERENCES,
        ),
        edit=st.none() | st.builds(Edit, _FLOATS, _TEXTS, st.none() | _TEXTS),
    ),
)
_RESULTS = st.builds(
    GenerationResult,
    images=st.lists(
        st.builds(
            GeneratedImage,
            image_id=st.just(ImageId("i")),
            storage_key=_TEXTS,
            nearest_similarity=st.none() | _FLOATS,
            push=_FLOATS,
        ),
        max_size=3,
    ).map(tuple),
    latent_space=st.just(LatentSpace("toy")),
    memory_name=st.just(MemoryName("default")),
    novelty_version=st.none() | st.integers(1, MAX_SEED),
    context_version=st.none() | st.integers(1, MAX_SEED),
)


@given(_JOBS)
def test_a_job_comes_back_as_it_was(job):
    """Every text, seed and float of a request survives, exactly."""
    assert codec.decode_job(codec.encode_job(job), where="job") == job


@given(_JOBS, _RESULTS, st.builds(Failure, code=_TEXTS, message=_TEXTS))
def test_a_record_comes_back_as_it_was(job, result, failure):
    """The hash's members become the record's."""
    found = {
        b"job": codec.encode_job(job),
        b"state": b"succeeded",
        b"fence": b"3",
        b"worker_id": b"w1",
        b"started_at_ms": b"6",
        b"finished_at_ms": b"7",
        b"result": codec.encode_result(result),
        b"failure": codec.FAILURE.dump_json(failure),
    }
    record = codec.decode_record(found, where="job")
    assert (record.job, record.state, record.fence) == (job, JobState.SUCCEEDED, 3)
    assert (record.worker_id, record.started_at_ms, record.finished_at_ms) == ("w1", 6, 7)
    assert (record.result, record.failure) == (result, failure)


@given(_JOBS)
def test_a_job_of_an_older_release_has_no_references_and_no_loras(job):
    """Records that were written before there were any are read on."""
    written = json.loads(codec.encode_job(job))
    del written["request"]["diversity"]["novelty"], written["request"]["diversity"]["context"]
    del written["request"]["loras"]
    found = codec.decode_job(json.dumps(written).encode(), where="job")
    assert (found.request.diversity.novelty, found.request.diversity.context) == (None, None)
    assert found.request.loras == ()


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"null", b'{"code": 1, "message": "x"}', b'{"code": "x"', b"\xff"]
)
def test_what_does_not_fit_is_corrupt(data):
    """The message names the record."""
    with pytest.raises(CorruptRecord, match=r"^job 7: "):
        decode(codec.FAILURE, data, where="job 7")


@pytest.mark.parametrize("found", [{}, {b"state": b"asleep"}, {b"state": b"queued"}])
def test_an_unknown_state_or_a_missing_job_is_corrupt(found):
    """Half a record is none."""
    with pytest.raises(CorruptRecord, match=r"^job 7: "):
        codec.decode_record(found, where="job 7")


@pytest.mark.parametrize(("push", "nearest"), [(float("nan"), 0.5), (0.0, float("inf"))])
def test_a_number_that_json_cannot_carry_is_refused(push, nearest):
    """It would be read back as null, and the record could never be read again."""
    image = GeneratedImage(ImageId("i"), 1, "k", 1, 1, nearest, push)
    with pytest.raises(ValueError, match="finite"):
        codec.encode_result(GenerationResult((image,), LatentSpace("toy"), MemoryName("default"), 0))
