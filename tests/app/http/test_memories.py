"""Memories over HTTP, with a real worker."""

import pytest

pytestmark = pytest.mark.usefixtures("worker")


def _remember(http, name, **members):
    body = {"prompt": "a star", "diversity": {"memory": {"name": name}}, "response_format": "url", **members}
    answer = http.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_memory_and_its_entries(http):
    """The images that were made, the newest first, with URLs that show them and the prompts of their jobs."""
    first = _remember(http, "shown", n=3, seed=7)
    second = _remember(http, "shown", prompt="a circle", seed=99)
    memory = http.get("/v1/memories/toy.shown").json()
    assert (memory["id"], memory["name"], memory["latent_space"]) == ("toy.shown", "shown", "toy")
    assert (memory["num_entries"], memory["version"]) == (4, 4)
    assert memory["bytes"] > 0
    assert memory["created_at"] <= memory["newest_entry_at"]
    entries = http.get("/v1/memories/toy.shown/entries").json()
    images = [*second["data"], *reversed(first["data"])]
    assert [entry["image_id"] for entry in entries["data"]] == [image["id"] for image in images]
    assert [entry["seed"] for entry in entries["data"]] == [99, 9, 8, 7]
    assert [entry["prompt"] for entry in entries["data"]] == ["a circle", *["a star"] * 3]
    assert [entry["version"] for entry in entries["data"]] == [4, 3, 2, 1]
    assert http.get(entries["data"][1]["image_url"]).content[:4] == b"\x89PNG"
    rest = http.get("/v1/memories/toy.shown/entries", params={"after": 3, "limit": 1}).json()
    assert ([entry["version"] for entry in rest["data"]], rest["has_more"]) == ([2], True)
    oldest = http.get("/v1/memories/toy.shown/entries", params={"order": "asc", "limit": 2}).json()
    assert [entry["version"] for entry in oldest["data"]] == [1, 2]


def test_memories_are_listed(http):
    """In order of ids, by pages."""
    for name in ("listed-a", "listed-b", "listed-c"):
        _remember(http, name)
    page = http.get("/v1/memories", params={"limit": 2, "after": "toy.listed"}).json()
    assert [memory["id"] for memory in page["data"]] == ["toy.listed-a", "toy.listed-b"]
    assert (page["last_id"], page["has_more"]) == ("toy.listed-b", True)
    page = http.get("/v1/memories", params={"limit": 1, "after": page["last_id"]}).json()
    assert [memory["id"] for memory in page["data"]] == ["toy.listed-c"]


@pytest.mark.parametrize(
    "memory_id",
    ["toy.nothing", "nothing", "toy.", ".x", "toy.A", "toy.a.b", "toy:listed", "toy.x%2Fy", "%00.a"],
)
def test_what_names_no_memory_is_not_found(http, memory_id):
    """One that never was, and what cannot be an id, all the same."""
    for path in (f"/v1/memories/{memory_id}", f"/v1/memories/{memory_id}/entries"):
        answer = http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path
