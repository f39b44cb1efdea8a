"""Texts of a form as the members of a body."""

from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError

from app.http.forms.edit_form import EditBody
from app.http.forms.form_fields import read_fields
from app.http.openapi.form_docs import flat_members


def _read(**fields: str) -> EditBody:
    return read_fields({"prompt": "a star", **fields}, EditBody)


def test_fields_are_what_the_same_body_in_json_is():
    """Numbers, truth values, texts that look like numbers, and members within members."""
    body = read_fields(
        {
            "prompt": "7",
            "user": "true",
            "n": "2",
            "seed": "9007199254740991",
            "edit_strength": "0.25",
            "guidance_scale": "3",
            "reproducible": "true",
            "stream": "false",
            "response_format": "b64_json",
            "negative_prompt": "",
            "diversity[strength]": "0",
            "diversity[memory][name]": "123",
            "diversity[memory][read]": "false",
            "diversity[novelty][reference]": "brand",
            "diversity[novelty][weight]": "0.5",
        },
        EditBody,
    )
    assert body == EditBody.model_validate(
        {
            "prompt": "7",
            "user": "true",
            "n": 2,
            "seed": 9007199254740991,
            "edit_strength": 0.25,
            "guidance_scale": 3,
            "reproducible": True,
            "stream": False,
            "response_format": "b64_json",
            "negative_prompt": "",
            "diversity": {
                "strength": 0,
                "memory": {"name": "123", "read": False},
                "novelty": {"reference": "brand", "weight": 0.5},
            },
        }
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"loras[0][name]": "7", "loras[0][scale]": "0.5", "loras[1][name]": "oil"},
        {"loras[10][name]": "oil", "loras[9][name]": "7", "loras[9][scale]": "0.5"},
        {"loras": '[{"name": "7", "scale": 0.5}, {"name": "oil"}]'},
    ],
)
def test_lists_have_numbers_or_are_json(fields: dict[str, str]) -> None:
    """In the order of their numbers."""
    asked = EditBody.model_validate(
        {"prompt": "a star", "loras": [{"name": "7", "scale": 0.5}, {"name": "oil"}]}
    )
    assert read_fields({"prompt": "a star", **fields}, EditBody) == asked


def test_a_list_of_one_as_clients_write_it() -> None:
    """With empty brackets."""
    (lora,) = _read(**{"loras[][name]": "ink", "loras[][scale]": "2"}).loras or ()
    assert (lora.name, lora.scale) == ("ink", 2)


@pytest.mark.parametrize(
    ("name", "text", "where", "kind"),
    [
        ("loras", "ink", ("loras",), "list_type"),
        ("loras[ink]", "1", ("loras",), "list_type"),
        ("loras[0]", "ink", ("loras",), "list_type"),
        ("loras[0][scale]", "1", ("loras", 0, "name"), "missing"),
        ("loras", '[{"name": "ink", "scale": "big"}]', ("loras", 0, "scale"), "float_type"),
        ("n", "two", ("n",), "int_type"),
        ("n", "2.5", ("n",), "int_type"),
        ("n", "2.0", ("n",), "int_type"),
        ("n", "", ("n",), "int_type"),
        ("n", "null", ("n",), "int_type"),
        ("n", "[2]", ("n",), "int_type"),
        ("n", "0", ("n",), "greater_than_equal"),
        ("stream", "1", ("stream",), "bool_type"),
        ("stream", "yes", ("stream",), "bool_type"),
        ("stream", "True", ("stream",), "bool_type"),
        ("edit_strength", "0", ("edit_strength",), "greater_than"),
        ("edit_strength", "1.01", ("edit_strength",), "less_than_equal"),
        ("edit_strength", "NaN", ("edit_strength",), "float_type"),
        ("edit_strength", "Infinity", ("edit_strength",), "float_type"),
        ("strength", "0.5", ("strength",), "extra_forbidden"),
        ("diversity", "0.5", ("diversity",), "model_type"),
        ("diversity[colour]", "red", ("diversity", "colour"), "extra_forbidden"),
        ("diversity[strength][x]", "1", ("diversity", "strength"), "float_type"),
        ("diversity[memory][version]", "-1", ("diversity", "memory", "version"), "greater_than_equal"),
        ("diversity[novelty][weight]", "1", ("diversity", "novelty", "reference"), "missing"),
        ("prompt[x]", "1", ("prompt[x]",), "extra_forbidden"),
        ("n[]", "1", ("n[]",), "extra_forbidden"),
        ("[n]", "1", ("[n]",), "extra_forbidden"),
        ("a[b][c][d][e]", "1", ("a[b][c][d][e]",), "extra_forbidden"),
    ],
)
def test_what_is_wrong_is_named(name: str, text: str, where: tuple[str, ...], kind: str):
    """By its place in the body, with what pydantic says of it."""
    with pytest.raises(RequestValidationError) as caught:
        _read(**{name: text})
    (error,) = caught.value.errors()
    assert (error["loc"], error["type"]) == (where, kind)


def test_the_document_has_a_field_for_every_member():
    """By the names that are read; what needs what is told."""
    properties, needs = flat_members(EditBody)
    assert {"prompt", "edit_strength", "diversity[strength]", "diversity[memory][name]"} <= set(properties)
    assert "diversity" not in properties
    assert needs["diversity[context][version]"] == [
        "diversity[context][reference]",
        "diversity[context][weight]",
    ]
    given: dict[str, Any] = {"integer": "1", "number": "1", "boolean": "true"}
    texts = {
        "size": "auto",
        "response_format": "url",
        "output_format": "png",
        "diversity[memory][write]": "true",
        "diversity[memory][also]": "[]",
        "loras": "[]",
    }
    fields = {name: texts.get(name, given.get(schema["type"], "a")) for name, schema in properties.items()}
    fields |= {"stream": "false"}
    assert read_fields(fields, EditBody).diversity is not None
