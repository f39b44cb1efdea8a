"""The operator's form of a preset is the engine's, member by member."""

import tomllib
from dataclasses import asdict, fields, replace
from types import NoneType
from typing import get_args, get_type_hints

import pytest
from pydantic import TypeAdapter, ValidationError

from app.domain.preset import WHOLE_PRESETS, PresetSpec, keeps_whole_latents
from sparke_engine.errors import InvalidArgument
from sparke_engine.guidance.presets import PRESETS, DiversityPreset, preset_named

OWN = [member.name for member in fields(DiversityPreset)]


def spec_of(preset: DiversityPreset) -> PresetSpec:
    """All members of a preset."""
    members = asdict(preset)
    return PresetSpec("paper", **members | {"grid": members["grid"] or "whole"})


def test_the_members_are_the_engines():
    """The same names in the same order, and the same types but for the grid, which TOML cannot leave empty."""
    assert [member.name for member in fields(PresetSpec)] == ["base", *OWN]
    own, engines = get_type_hints(PresetSpec), get_type_hints(DiversityPreset)
    for name in set(OWN) - {"grid"}:
        assert set(get_args(own[name])) - {NoneType} in ({engines[name]}, set(get_args(engines[name]))), name


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_survives_toml(name: str):
    """Written, read and put on another base it is the same preset."""
    preset = preset_named(name)
    table = tomllib.loads(spec_of(preset).to_toml())["models"]["diversity_preset"]
    read = TypeAdapter(PresetSpec).validate_python(table)
    assert read == spec_of(preset)
    assert replace(preset_named("paper"), **read.changes) == preset


@pytest.mark.parametrize("name", [*sorted(PRESETS), "default"])
def test_which_presets_keep_whole_latents_is_known_without_the_engine(name: str):
    """Named or as a base they are the engine's without a grid; a grid that is stated goes before the base's."""
    is_whole = name != "default" and preset_named(name).grid is None
    assert (name in WHOLE_PRESETS) == is_whole
    assert keeps_whole_latents(name) == keeps_whole_latents(PresetSpec(name)) == is_whole
    assert keeps_whole_latents(PresetSpec(name, grid="whole"))
    assert not keeps_whole_latents(PresetSpec(name, grid=(4, 4)))


NUMBERS = [name for name, kind in get_type_hints(DiversityPreset).items() if kind in {int, float}]


@pytest.mark.parametrize("member", NUMBERS)
def test_both_refuse_the_same_numbers(member: str):
    """Out of range for the engine is out of range for the catalogue, before any engine is there."""
    refused = 0
    for value in (0, -1, 2):
        try:
            replace(DiversityPreset(), **{member: value})
        except InvalidArgument:
            refused += 1
            with pytest.raises(ValidationError):
                TypeAdapter(PresetSpec).validate_python({member: value})
        else:
            TypeAdapter(PresetSpec).validate_python({member: value})
    assert refused > 0
