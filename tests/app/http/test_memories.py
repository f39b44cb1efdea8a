"""Memories over HTTP, with a real worker."""

import io
import threading
import time

import pytest
from patience import PATIENCE_S
from PIL import Image

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
    shown = entries["data"][1]
    assert http.get(shown["image_url"]).content[:4] == b"\x89PNG"
    small = Image.open(io.BytesIO(http.get(shown["thumbnail_url"]).content))
    assert (small.format, small.size) == ("WEBP", (64, 64))
    rest = http.get("/v1/memories/toy.shown/entries", params={"after": 3, "limit": 1}).json()
    assert ([entry["version"] for entry in rest["data"]], rest["has_more"]) == ([2], True)
    oldest = http.get("/v1/memories/toy.shown/entries", params={"order": "asc", "limit": 2}).json()
    assert [entry["version"] for entry in oldest["data"]] == [1, 2]


def test_an_image_that_is_not_kept_has_no_url(http, settings):
    """Its entry stays, and its prompt as long as the job's record."""
    image = _remember(http, "swept")["data"][0]
    (path,) = settings.data_dir.rglob(f"{image['id'].rpartition('-')[0]}/*.png")
    path.unlink()
    (entry,) = http.get("/v1/memories/toy.swept/entries").json()["data"]
    assert (entry["image_id"], entry["image_url"], entry["prompt"]) == (image["id"], None, "a star")


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


def test_a_name_in_place_of_an_id_is_told_what_an_id_is(http):
    """Requests name a memory, its paths take its id; and a list goes on after an id."""
    message = http.get("/v1/memories/listed").json()["error"]["message"]
    assert "the latent space, a dot and the name" in message
    refused = http.get("/v1/memories", params={"after": "listed"})
    assert (refused.status_code, "a dot and its name" in refused.json()["detail"]) == (400, True)


def _entries(http, name):
    return http.get(f"/v1/memories/toy.{name}/entries").json()["data"]


@pytest.mark.parametrize("by", ["version", "image_id"])
def test_an_entry_is_forgotten_with_all_that_tells_of_it(http, by):
    """By its version or its image: image, job and idempotency key are gone; a second time there is none."""
    name, key = f"forgets-{by}".replace("_", "-"), {"idempotency-key": f"forgets {by}"}
    body = {"prompt": "a star", "diversity": {"memory": {"name": name}}, "response_format": "url"}
    image = http.post("/v1/images/generations", json=body, headers=key).json()["data"][0]
    kept = _remember(http, name)["data"][0]
    (entry,) = [each for each in _entries(http, name) if each["image_id"] == image["id"]]
    path = f"/v1/memories/toy.{name}/entries/{entry[by]}"
    answer = http.delete(path, params={"wait_s": 5}).json()
    assert answer == {
        "id": f"toy.{name}",
        "object": "memory.forgotten",
        "num_forgotten": 1,
        "version": 3,
        "num_running": 0,
        "num_remaining": 0,
    }
    assert [each["image_id"] for each in _entries(http, name)] == [kept["id"]]
    assert http.get(image["url"]).status_code == 404
    assert http.get(f"/v1/jobs/{entry['job_id']}").status_code == 404
    assert http.get(kept["url"]).status_code == 200
    assert http.delete(path).status_code == 404
    again = http.post("/v1/images/generations", json=body, headers=key).json()["data"][0]
    assert again["id"] != image["id"]


def test_what_is_forgotten_guides_nothing_and_cannot_be_replayed(http):
    """The next image has fewer neighbours; a replay of what the memory was is 410, before it waits for anything."""
    name = "forgets-guidance"
    _remember(http, name, n=3)
    http.post(f"/v1/memories/toy.{name}/forget", json={"versions": [2, 3]}).raise_for_status()
    answer = _remember(http, name)
    assert answer["data"][0]["diversity"]["num_neighbours"] == 1
    for member, named in (
        ("memory", {"name": name, "version": 3}),
        ("novelty", {"reference": name, "version": 3, "weight": 0.5}),
        ("context", {"reference": name, "version": 3, "weight": 0.5}),
    ):
        for path in ("/v1/images/generations", "/v1/jobs"):
            gone = http.post(path, json={"prompt": "a star", "diversity": {member: named}})
            assert (gone.status_code, gone.json()["error"]["code"]) == (410, "memory_version_gone"), path
            assert gone.json()["error"]["param"] == f"diversity.{member}.version"
    body = {"prompt": "a star", "diversity": {"memory": {"name": name, "version": 3}}}
    gone = http.post("/v1/images/generations", json=body, headers={"idempotency-key": "the worker says it"})
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "memory_version_gone")


def test_many_are_forgotten(http):
    """By images, by time, all: what is not there is passed over."""
    name = "forgets-many"
    images = _remember(http, name, n=5)["data"]
    path = f"/v1/memories/toy.{name}/forget"
    ids = [images[0]["id"], images[4]["id"], f"job_{'0' * 28}-0"]
    assert http.post(path, json={"images": ids}).json()["num_forgotten"] == 2
    assert http.post(path, json={"before": 1_600_000_000}).json()["num_forgotten"] == 0
    made_at = _entries(http, name)[0]["created_at"]
    assert http.post(path, json={"before": made_at + 1}).json()["num_forgotten"] == 3
    _remember(http, name, n=2)
    answer = http.post(path, json={"all": True}).json()
    assert (answer["num_forgotten"], answer["num_remaining"]) == (2, 0)
    assert http.get(f"/v1/memories/toy.{name}").json()["num_entries"] == 0
    assert http.post(path, json={"versions": [1]}).json() == {**answer, "num_forgotten": 0}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"all": False},
        {"all": None},
        {"all": True, "before": 5},
        {"all": True, "before": None},
        {"versions": []},
        {"versions": [0]},
        {"versions": [1] * 1001},
        {"images": ["../../etc"]},
        {"before": -1},
        {"query": "a star"},
    ],
)
def test_what_says_not_what_to_forget_is_refused(http, body):
    """And nothing is forgotten."""
    _remember(http, "keeps")
    before = http.get("/v1/memories/toy.keeps").json()["num_entries"]
    assert http.post("/v1/memories/toy.keeps/forget", json=body).status_code == 400
    assert http.get("/v1/memories/toy.keeps").json()["num_entries"] == before


def test_a_memory_is_deleted(http):
    """It is not found and not listed; what is asked for under its name makes it anew, at later versions."""
    _remember(http, "deleted", n=2)
    answer = http.delete("/v1/memories/toy.deleted").json()
    assert (answer["deleted"], answer["num_forgotten"], answer["version"]) == (True, 2, 3)
    for call in (
        http.get("/v1/memories/toy.deleted"),
        http.delete("/v1/memories/toy.deleted"),
        http.post("/v1/memories/toy.deleted/forget", json={"all": True}),
        http.delete("/v1/memories/toy.deleted/entries/1"),
    ):
        assert call.status_code == 404
    listed = http.get("/v1/memories", params={"limit": 100}).json()["data"]
    assert "toy.deleted" not in {memory["id"] for memory in listed}
    assert _remember(http, "deleted")["memory_version"] == 3
    assert [entry["version"] for entry in _entries(http, "deleted")] == [4]


def test_the_answer_waits_for_jobs_that_run_or_tells_of_them(http):
    """They may have read what is forgotten; those that begin later cannot."""
    name = "waits"
    _remember(http, name)
    asked = {"prompt": "a star", "steps": 1_000_000, "diversity": {"memory": {"name": "elsewhere"}}}
    job = http.post("/v1/jobs", json=asked).json()
    until_s = time.monotonic() + PATIENCE_S
    while http.get(f"/v1/jobs/{job['id']}").json()["status"] != "running":
        assert time.monotonic() < until_s
    path = f"/v1/memories/toy.{name}/entries/1"
    began_s = time.monotonic()
    assert http.delete(path, params={"wait_s": 0.5}).json()["num_running"] == 1
    assert time.monotonic() - began_s >= 0.5
    stopping = threading.Timer(0.5, lambda: http.post(f"/v1/jobs/{job['id']}/cancel"))
    stopping.start()
    answer = http.post(f"/v1/memories/toy.{name}/forget", json={"all": True}, params={"wait_s": 30}).json()
    assert answer["num_running"] == 0
    stopping.join()
    assert http.get(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled"


def test_a_memory_is_frozen_and_capped(http):
    """Settings are shown, hold for what is made next, and go with the memory."""
    path = "/v1/memories/toy.shaped"
    _remember(http, "shaped", n=4)
    capped = http.patch(path, json={"max_entries": 2, "max_age_s": 3600}).json()
    assert (capped["num_entries"], capped["max_entries"], capped["max_age_s"]) == (2, 2, 3600)
    image = _remember(http, "shaped")["data"][0]
    assert [entry["version"] for entry in _entries(http, "shaped")] == [6, 4]
    frozen = http.patch(path, json={"frozen": True, "max_age_s": None}).json()
    assert (frozen["frozen"], frozen["max_entries"], frozen["max_age_s"]) == (True, 2, None)
    _remember(http, "shaped")
    assert _entries(http, "shaped")[0]["image_id"] == image["id"]
    http.delete(path).raise_for_status()
    _remember(http, "shaped")
    anew = http.get(path).json()
    assert (anew["frozen"], anew["max_entries"], anew["num_entries"]) == (False, None, 1)


@pytest.mark.parametrize("body", [{}, {"max_entries": 0}, {"max_age_s": "1"}, {"frozen": 1}, {"title": "x"}])
def test_what_is_no_setting_is_refused(http, body):
    """In the one form of errors; so is a memory that is not there."""
    _remember(http, "keeps")
    assert http.patch("/v1/memories/toy.keeps", json=body).status_code == 400
    assert http.patch("/v1/memories/toy.nothing", json={"frozen": True}).status_code == 404
