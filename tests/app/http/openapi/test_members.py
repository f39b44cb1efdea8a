"""The OpenAPI document says of every member what it is."""

import httpx
import pytest

from app.http.openapi.member_docs import SHARED_MEMBERS, describe_members, is_described, members_of


def test_every_member_is_described(http: httpx.Client):
    """Of bodies, forms, answers and events, in words of its own or in those of the schema that it refers to."""
    document = http.get("/openapi.json").json()
    members = list(members_of(document))
    assert len(members) > 500
    schemas = document["components"]["schemas"]
    assert [name for name, member in members if not is_described(member, schemas)] == []


def test_no_word_is_for_nobody(http: httpx.Client):
    """Each of the shared descriptions stands somewhere in the document."""
    document = http.get("/openapi.json").json()
    told = {(name, member.get("description")) for name, member in members_of(document)}
    assert SHARED_MEMBERS.items() - told == set()


def test_a_member_without_words_ends_the_making_of_the_document():
    """Its name is in the error; one whose name is shared gets those words, and one that has its own keeps them."""
    members = {"id": {}, "size": {"description": "Large."}, "ref": {"$ref": "#/components/schemas/Told"}}
    document = {
        "components": {"schemas": {"Told": {"description": "Told."}, "Made": {"properties": members}}}
    }
    describe_members(document)
    assert members["id"] == {"description": SHARED_MEMBERS["id"]}
    assert members["size"] == {"description": "Large."}
    assert members["ref"] == {"$ref": "#/components/schemas/Told"}
    members["odd"] = {}
    with pytest.raises(KeyError, match="odd"):
        describe_members(document)
