"""What a PNG says about how it was made."""

import io
import json
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis import settings as examples
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app.domain.ids import MemoryName, image_id
from app.domain.request import Edit, MemorySelection, ReferenceSelection
from app.errors import CorruptRecord
from app.worker.course.png import ImageOrigin, ReferenceMetadata, encode_png, image_metadata, read_metadata


def _origin(job, index=0):
    return ImageOrigin(
        image_id(job.job_id, index), index, memory_version=12, num_batch_images=5, service_version="0.1.0"
    )


def test_metadata_and_pixels_survive(make_job):
    """What was written is read, and the pixels are lossless."""
    job = make_job(
        1,
        seed=41,
        num_images=3,
        reproducible=True,
        memory=MemorySelection(name=MemoryName("ads"), read=False),
    )
    metadata = image_metadata(job.request, _origin(job, index=2))
    image = Image.effect_noise((64, 32), 90).convert("RGB")
    png = encode_png(image, metadata)
    assert read_metadata(png) == metadata
    assert (metadata.seed, metadata.request_seed, metadata.num_images) == (43, 41, 3)
    assert (metadata.memory_name, metadata.memory_version, metadata.memory_read) == ("ads", 12, False)
    assert (metadata.reproducible, metadata.num_batch_images) == (True, 5)
    assert Image.open(io.BytesIO(png)).tobytes() == image.tobytes()


def test_the_references_are_told(make_job):
    """Name, version and weight of each, for programs and for people; one that did not take part is not there."""
    novelty = ReferenceSelection(MemoryName("published"), 0.75)
    job = make_job(1, novelty=novelty)
    metadata = image_metadata(job.request, replace(_origin(job), novelty_version=9))
    png = encode_png(Image.new("RGB", (2, 2)), metadata)
    assert read_metadata(png).novelty == ReferenceMetadata(MemoryName("published"), 9, 0.75)
    assert read_metadata(png).context is None
    assert "Novelty: published@9 weight 0.75, Image:" in Image.open(io.BytesIO(png)).text["parameters"]


def test_the_loras_are_told(make_job):
    """Name and scale of each, for programs and for people; a PNG of the time before there were any is still read."""
    job = make_job(1, loras={"ink": -0.5, "oil": 1.0})
    png = encode_png(Image.new("RGB", (2, 2)), image_metadata(job.request, _origin(job)))
    assert read_metadata(png).loras == job.request.loras
    assert "LoRAs: ink:-0.5 oil:1, Diversity" in Image.open(io.BytesIO(png)).text["parameters"]
    told = json.loads(Image.open(io.BytesIO(png)).text["sparke"])
    chunk = PngInfo()
    chunk.add_itxt("sparke", json.dumps({name: value for name, value in told.items() if name != "loras"}))
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, format="PNG", pnginfo=chunk)
    assert read_metadata(buffer.getvalue()).loras == ()


def test_an_edit_is_told(make_job):
    """How much was given up and the digests of the files as they were sent, for programs and for people."""
    edit = Edit(0.75, "ab" * 32, "cd" * 32)
    png = encode_png(
        Image.new("RGB", (2, 2)), image_metadata(make_job(1, edit=edit).request, _origin(make_job(1)))
    )
    assert read_metadata(png).edit == edit
    said = Image.open(io.BytesIO(png)).text["parameters"]
    assert f"Denoising strength: 0.75, Picture SHA-256: {'ab' * 32}, Mask SHA-256: {'cd' * 32}" in said


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@examples(deadline=None, max_examples=60)
@given(prompt=_TEXT, negative_prompt=_TEXT)
def test_any_text_survives(make_job, prompt, negative_prompt):
    """Emoji, new lines, zeros and quotes come back as they were."""
    job = make_job(1, prompt=prompt, negative_prompt=negative_prompt)
    metadata = image_metadata(job.request, _origin(job))
    assert read_metadata(encode_png(Image.new("RGB", (2, 2)), metadata)) == metadata


@pytest.mark.parametrize("prompt", ["x" * 4_000, "🦊" * 4_000, "\n" * 4_000], ids=["long", "emoji", "lines"])
def test_a_prompt_of_4000_characters_survives(make_job, prompt):
    """The longest prompt that the service takes fits, as prompt and as negative prompt."""
    job = make_job(1, prompt=prompt, negative_prompt=prompt[::-1])
    metadata = image_metadata(job.request, _origin(job))
    assert read_metadata(encode_png(Image.new("RGB", (2, 2)), metadata)) == metadata


def test_people_can_read_the_parameters(make_job):
    """The second chunk has the prompt, the negative prompt and the settings in plain words."""
    job = make_job(1, prompt="a red circle", negative_prompt="blurry", seed=5, steps=25)
    png = encode_png(Image.new("RGB", (64, 64)), image_metadata(job.request, _origin(job)))
    text = Image.open(io.BytesIO(png)).text["parameters"]
    settings = (
        "Steps: 25, CFG scale: 5.0, Seed: 5, Size: 64x64, Model: toy, Diversity strength: 0.5, "
        f"Memory: default@12, Image: {job.job_id}-0, Version: SPARKE 0.1.0"
    )
    assert text.splitlines() == ["a red circle", "Negative prompt: blurry", settings]


def _bare_png(chunk=None):
    buffer = io.BytesIO()
    info = None
    if chunk is not None:
        info = PngInfo()
        info.add_itxt("sparke", chunk)
    Image.new("RGB", (2, 2)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", _bare_png(), _bare_png("no json"), _bare_png('{"seed": 1}')],
    ids=["empty", "no PNG", "no chunk", "no JSON", "members missing"],
)
def test_a_file_without_our_metadata_is_refused(data):
    """Foreign, stripped and damaged files raise CorruptRecord and nothing else."""
    with pytest.raises(CorruptRecord):
        read_metadata(data)


def test_a_truncated_file_is_refused(make_job):
    """Half a PNG is CorruptRecord, wherever it was cut."""
    job = make_job(1)
    png = encode_png(Image.effect_noise((16, 16), 90), image_metadata(job.request, _origin(job)))
    for length in range(0, len(png) - 24, 7):  # what follows are checksums and the empty end chunk
        with pytest.raises(CorruptRecord):
            read_metadata(png[:length])
