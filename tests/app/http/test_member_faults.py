"""What is said of a member that is not known, wherever it was sent."""

from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from app.http.bodies.generation_bodies import GenerationBody
from app.http.forms.edit_form import EditBody
from app.http.forms.form_fields import read_fields
from app.http.member_faults import explain_members, faults_of


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"promt": "x"}, "promt: unknown member; did you mean 'prompt'?"),
        (
            {"diversity": {"memory": {"nmae": "x"}}},
            "diversity.memory.nmae: unknown member; did you mean 'name'?",
        ),
        ({"loras": [{"name": "a", "scal": 1}]}, "loras.0.scal: unknown member; did you mean 'scale'?"),
        ({"diversity": {"promt": 1}}, "diversity.promt: unknown member"),
        ({"zzz": 1}, "zzz: unknown member"),
        ({"s" * 3_000_000: 1}, f"{'s' * 80}: unknown member"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_was_meant_is_said(members: dict[str, Any], said: str):
    """The nearest of those that are known in that very place, if one is near; of a long name no more than its begin is looked at."""
    with pytest.raises(ValidationError) as caught:
        GenerationBody.model_validate({"prompt": "a star", **members})
    told = explain_members(faults_of(caught.value, GenerationBody))
    assert (told.code, told.message) == ("unknown_parameter", said)


def test_a_form_says_it_as_a_body_does():
    """Its bracketed names are places too."""
    with pytest.raises(RequestValidationError) as caught:
        read_fields({"prompt": "a star", "diversity[memory][nmae]": "x"}, EditBody)
    told = explain_members(list(caught.value.errors()))
    assert told.message == "diversity.memory.nmae: unknown member; did you mean 'name'?"
    assert told.param == "diversity.memory.nmae"
