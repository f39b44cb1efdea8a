"""How a body becomes a valid request."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.domain.ids import LatentSpace, LoraName, MemoryName, ModelId
from app.domain.lora import LoraSelection, LoraSpec
from app.domain.model import ModelSpec, SizeLimits
from app.domain.request import MAX_SEED, Diversity, GenerationRequest, MemorySelection, ReferenceSelection
from app.errors import InvalidId, InvalidRequest, InvalidValue, ModelNotFound
from app.http.bodies.generation import find_model, to_request
from app.http.bodies.generation_bodies import GenerationBody

SPEC = ModelSpec(
    model_id=ModelId("wide"),
    source="builtin:toy",
    latent_space=LatentSpace("toy"),
    size=SizeLimits(default_width_px=96, default_height_px=64, min_px=32, max_px=128, multiple_px=16),
    default_steps=20,
    max_steps=50,
    default_guidance_scale=4.5,
    max_guidance_scale=12.0,
    default_strength=0.4,
    loras=(LoraSpec(LoraName("oil"), "/oil", default_scale=0.75), LoraSpec(LoraName("ink"), "/ink")),
)


def _request(**members: Any) -> GenerationRequest:
    body = GenerationBody.model_validate({"prompt": "a star", **members})
    return to_request(body, SPEC, lambda num: b"\x07" * num)


def test_defaults_are_the_models():
    """What a body leaves out is the model's default, and the seed is drawn."""
    assert _request() == GenerationRequest(
        model=SPEC.model_id,
        prompt="a star",
        negative_prompt="",
        num_images=1,
        width_px=96,
        height_px=64,
        steps=20,
        guidance_scale=4.5,
        seed=0x0707070707070707 % 2**53,
        diversity=Diversity(strength=0.4, memory=MemorySelection()),
        reproducible=False,
    )


def test_null_is_the_same_as_absent():
    """The official client may send null for what it does not set."""
    nulls = dict.fromkeys(
        ("model", "n", "size", "response_format", "seed", "steps", "guidance_scale", "diversity", "stream")
    )
    assert _request(**nulls) == _request()


def test_what_is_given_is_taken():
    """Every member of our own reaches the request."""
    found = _request(
        n=3,
        size="32x128",
        seed=MAX_SEED,
        negative_prompt="blue",
        steps=50,
        guidance_scale=12,
        reproducible=True,
        diversity={
            "strength": 1,
            "memory": {"name": "other", "read": True, "write": False},
            "num_neighbours": 7,
            "latent_bandwidth": 0.5,
            "prompt_bandwidth": 0.25,
        },
    )
    assert (found.width_px, found.height_px, found.num_images, found.steps) == (32, 128, 3, 50)
    assert (found.negative_prompt, found.guidance_scale, found.reproducible) == ("blue", 12.0, True)
    assert found.seeds == (MAX_SEED, 0, 1)
    memory = MemorySelection(name="other", read=True, write=False)
    assert found.diversity == Diversity(1.0, memory, 7, 0.5, 0.25)


@pytest.mark.parametrize(("write", "expected"), [(None, False), (True, True), (False, False)])
def test_a_replay_is_not_remembered_unless_asked(write: bool | None, expected: bool):  # noqa: FBT001
    """With a version, `write` is false where it is absent."""
    memory = {"version": 3} if write is None else {"version": 3, "write": write}
    found = _request(diversity={"memory": memory}).diversity.memory
    assert (found.version, found.write) == (3, expected)


@pytest.mark.parametrize(
    "size", ["31x64", "144x64", "40x64", "64", "64x", "x", "64X64", "064x64", "-64x64", "\uff196x64"]
)
def test_a_size_outside_the_limits_is_refused_with_what_is_allowed(size: str):
    """Too small, too large, no multiple, or no size at all."""
    with pytest.raises(InvalidValue, match="from 32 to 128 px in multiples of 16") as caught:
        _request(size=size)
    assert caught.value.param == "size"


@pytest.mark.parametrize(("member", "value"), [("steps", 51), ("guidance_scale", 12.5)])
def test_the_models_own_limits_hold(member: str, value: float):
    """Steps and guidance scale end where the catalogue says."""
    with pytest.raises(InvalidValue) as caught:
        _request(**{member: value})
    assert caught.value.param == member


@pytest.mark.parametrize(
    ("memory", "kind"),
    [
        ({"name": "../x"}, InvalidId),
        ({"name": ""}, InvalidId),
        ({"version": 1, "read": False}, InvalidRequest),
    ],
)
def test_a_memory_that_makes_no_sense_is_refused(memory: dict[str, Any], kind: type[InvalidRequest]):
    """A name of the wrong form, or a version that is not to be read."""
    with pytest.raises(kind) as caught:
        _request(diversity={"memory": memory})
    assert (caught.value.param or "").startswith("diversity.memory.")


def test_novelty_and_context_reach_the_request():
    """Each with its reference, weight and pinned version; by default there is neither."""
    found = _request(
        diversity={
            "strength": 0,
            "novelty": {"reference": "published", "weight": 1, "version": 12},
            "context": {"reference": "brand", "weight": 0.25},
        }
    ).diversity
    assert found.novelty == ReferenceSelection(MemoryName("published"), 1.0, 12)
    assert found.context == ReferenceSelection(MemoryName("brand"), 0.25, None)
    assert (_request().diversity.novelty, _request().diversity.context) == (None, None)


@pytest.mark.parametrize("member", ["novelty", "context"])
def test_a_reference_of_the_wrong_form_is_refused(member: str):
    """The error names the member, not only the form."""
    with pytest.raises(InvalidId) as caught:
        _request(diversity={member: {"reference": "../x", "weight": 0.5}})
    assert caught.value.param == f"diversity.{member}.reference"


def test_one_reference_cannot_lead_away_and_back():
    """The same memory for novelty and for context is refused; two names are not."""
    both = {
        "novelty": {"reference": "brand", "weight": 0.5},
        "context": {"reference": "brand", "weight": 0.25},
    }
    with pytest.raises(InvalidRequest, match="brand") as caught:
        _request(diversity=both)
    assert caught.value.param == "diversity.context.reference"
    _request(diversity=both | {"context": {"reference": "other", "weight": 0.25}})


@pytest.mark.parametrize(
    "members",
    [
        {"n": 0},
        {"n": 11},
        {"n": True},
        {"n": 1.0},
        {"seed": -1},
        {"seed": MAX_SEED + 1},
        {"prompt": " \n\t"},
        {"prompt": "x" * 4001},
        {"prompt": None},
        {"steps": 0},
        {"stream": True, "response_format": "url"},
        {"output_format": "webp"},
        {"response_format": "png"},
        {"guidance_scale": float("inf")},
        {"guidance_scale": -0.1},
        {"diversity": {"strength": 1.5}},
        {"diversity": {"strength": float("nan")}},
        {"diversity": {"latent_bandwidth": 0}},
        {"diversity": {"num_neighbours": 0}},
        {"diversity": {"novelty": {}}},
        {"diversity": {"novelty": {"reference": "brand"}}},
        {"diversity": {"context": {"weight": 0.5}}},
        {"diversity": {"context": {"reference": "brand", "weight": -0.1}}},
        {"diversity": {"novelty": {"reference": "brand", "weight": 1.01}}},
        {"diversity": {"novelty": {"reference": "brand", "weight": float("nan")}}},
        {"diversity": {"novelty": {"reference": "brand", "weight": 0.5, "version": 0}}},
        {"diversity": {"novelty": {"reference": "brand", "weight": 0.5, "prompt": "a star"}}},
        {"loras": "ink"},
        {"loras": ["ink"]},
        {"loras": [{}]},
        {"loras": [{"name": "ink", "weight": 1}]},
        {"loras": [{"name": "ink", "scale": 4.01}]},
        {"loras": [{"name": "ink", "scale": float("nan")}]},
        {"loras": [{"name": "ink", "scale": "1"}]},
        {"loras": [{"name": name} for name in "abcde"]},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_member_at_fault_is_refused(members: dict[str, Any]):
    """Out of range, of the wrong type, not supported, or unknown."""
    with pytest.raises(ValidationError):
        GenerationBody.model_validate({"prompt": "a star", **members})


@given(st.binary(min_size=8, max_size=8), st.integers(1, 10))
def test_every_drawn_seed_is_a_seed(randomness: bytes, num_images: int):
    """Whatever the random source gives, all seeds of the request are in range and differ."""
    body = GenerationBody(prompt="a star", n=num_images)
    give: Callable[[int], bytes] = lambda _num: randomness  # noqa: E731
    seeds = to_request(body, SPEC, give).seeds
    assert len(set(seeds)) == num_images
    assert all(0 <= seed <= MAX_SEED for seed in seeds)


def test_an_unknown_model_is_told_which_there_are():
    """The catalogue's first is the default; another name must be in it."""
    catalogue = {SPEC.model_id: SPEC}
    assert find_model(None, catalogue) is SPEC
    with pytest.raises(ModelNotFound, match="there are: wide"):
        find_model("dall-e-3", catalogue)


def test_loras_are_those_of_the_model_in_the_order_of_their_names():
    """With the scale that is asked for or the LoRA's own. One of scale 0, an empty list and null are none."""
    oil = LoraSelection(LoraName("oil"), 0.75)
    assert _request(loras=[{"name": "oil"}, {"name": "ink", "scale": -2}]).loras == (
        LoraSelection(LoraName("ink"), -2.0),
        oil,
    )
    assert _request(loras=[{"name": "ink", "scale": 0}, {"name": "oil", "scale": None}]).loras == (oil,)
    assert _request(loras=[]) == _request(loras=None) == _request()


@pytest.mark.parametrize(
    ("names", "message", "param"),
    [
        (["oil", "pastel"], "no LoRA 'pastel'; there are: oil, ink", "loras.1.name"),
        (["ink", "oil", "ink"], "'ink' is named twice", "loras.2.name"),
    ],
)
def test_a_lora_that_the_model_has_not_is_refused(names: list[str], message: str, param: str):
    """The error says what there is; one that comes twice is refused too."""
    with pytest.raises(InvalidValue, match=message) as caught:
        _request(loras=[{"name": name} for name in names])
    assert caught.value.param == param
