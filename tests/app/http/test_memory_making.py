"""Memories that are created, forked and renamed over HTTP, with a real worker."""

import base64
import io
import threading
import time

import pytest
from patience import PATIENCE_S
from PIL import Image

pytestmark = pytest.mark.usefixtures("worker")


def _generate(http, name, **members):
    memory = {"name": name, **members.pop("memory", {})}
    body = {"prompt": "a star", "diversity": {"memory": memory}, **members}
    answer = http.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _pixels(answer):
    return [Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).tobytes() for image in answer["data"]]


def _replay(http, name, version):
    memory = {"version": version, "write": False}
    return _generate(http, name, seed=5, n=2, reproducible=True, memory=memory)


def _entries(http, name):
    return http.get(f"/v1/memories/toy.{name}/entries").json()["data"]


def test_a_memory_is_created_with_its_settings(http):
    """Listed though it holds nothing, by latent space or model; a second time it is there already."""
    body = {"name": "created", "latent_space": "toy", "max_entries": 2, "keep_prompts": True}
    made = http.post("/v1/memories", json=body)
    assert made.status_code == 201, made.text
    shown = http.get("/v1/memories/toy.created").json()
    assert made.json() == shown
    assert (shown["version"], shown["num_entries"], shown["newest_entry_at"]) == (0, 0, None)
    assert (shown["max_entries"], shown["max_age_s"]) == (2, None)
    assert (shown["keep_prompts"], shown["frozen"]) == (True, False)
    assert _entries(http, "created") == []
    again = http.post("/v1/memories", json={"name": "created", "model": "toy"})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "memory_exists")
    _generate(http, "created", n=3)
    shown = http.get("/v1/memories/toy.created").json()
    assert (shown["num_entries"], shown["version"]) == (2, 4)
    frozen = http.post("/v1/memories", json={"name": "created-frozen", "frozen": True})
    assert frozen.status_code == 201
    _generate(http, "created-frozen")
    assert http.get("/v1/memories/toy.created-frozen").json()["num_entries"] == 0


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({}, 400, "missing_required_parameter", "name"),
        ({"name": "A"}, 400, None, "name"),
        ({"name": "x", "latent_space": "toy", "model": "toy"}, 400, "invalid_value", None),
        ({"name": "x", "latent_space": "elsewhere"}, 400, "invalid_value", "latent_space"),
        ({"name": "x", "model": "elsewhere"}, 404, "model_not_found", "model"),
        ({"name": "x", "max_entries": 0}, 400, None, "max_entries"),
    ],
)
def test_what_cannot_be_created_is_refused(http, body, status, code, param):
    """With the member at fault."""
    answer = http.post("/v1/memories", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), answer.text
    assert code in (None, error["code"]), answer.text


def test_a_fork_leads_the_same_images(http):
    """At every version up to the one that it is of, to the bit; then each goes its own way."""
    for number in range(3):
        _generate(http, "forked", n=2, seed=100 * number)
    made = http.post("/v1/memories/toy.forked/fork", json={"name": "fork-of-all"})
    assert made.status_code == 201, made.text
    assert (made.json()["id"], made.json()["num_entries"], made.json()["version"]) == (
        "toy.fork-of-all",
        6,
        6,
    )
    then = http.post("/v1/memories/toy.forked/fork", json={"name": "fork-of-then", "version": 4})
    assert (then.json()["num_entries"], then.json()["version"]) == (4, 4)
    _generate(http, "forked", seed=900)
    for version in (0, 2, 4, 6):
        expected = _replay(http, "forked", version)
        names = ("fork-of-all", "fork-of-then") if version <= 4 else ("fork-of-all",)
        for name in names:
            found = _replay(http, name, version)
            assert _pixels(found) == _pixels(expected), (name, version)
            assert found["data"][0]["diversity"]["num_neighbours"] == version
    assert _pixels(_replay(http, "forked", 0)) != _pixels(_replay(http, "forked", 6))
    assert http.get("/v1/memories/toy.fork-of-all").json()["version"] == 6


def test_forgetting_in_one_is_not_forgetting_in_the_other(http):
    """The image goes all the same; with `everywhere` so does every entry of it."""
    image = _generate(http, "origin", response_format="url")["data"][0]
    kept = _generate(http, "origin", response_format="url")["data"][0]
    http.post("/v1/memories/toy.origin/fork", json={"name": "offshoot"}).raise_for_status()
    http.post("/v1/memories/toy.origin/forget", json={"images": [image["id"]]}).raise_for_status()
    assert http.get(image["url"]).status_code == 404
    newest, oldest = _entries(http, "offshoot")
    assert (oldest["image_id"], oldest["image_url"]) == (image["id"], None)
    assert newest["image_url"] is not None
    body = {"images": [image["id"], kept["id"]], "everywhere": True}
    answer = http.post("/v1/memories/toy.offshoot/forget", json=body).json()
    assert answer["num_forgotten"] == 3
    assert _entries(http, "origin") == _entries(http, "offshoot") == []
    for wrong in (
        {"everywhere": True},
        {"all": True, "everywhere": True},
        {"versions": [1], "everywhere": False},
    ):
        assert http.post("/v1/memories/toy.origin/forget", json=wrong).status_code == 400, wrong


def test_what_cannot_be_forked_is_refused(http):
    """No such memory, a name that is taken, a version to come."""
    _generate(http, "unforked")
    path = "/v1/memories/toy.unforked/fork"
    for url, body, status, code in (
        ("/v1/memories/toy.never-was/fork", {"name": "x"}, 404, "not_found"),
        (path, {"name": "unforked"}, 409, "memory_exists"),
        (path, {"name": "x", "version": 2}, 400, "invalid_request"),
    ):
        answer = http.post(url, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


def test_a_memory_gets_another_name(http):
    """Versions and images stay; under the old name nothing is found, and what names it makes one anew, which reads nothing."""
    first = _generate(http, "before", n=2)
    expected = _replay(http, "before", 2)
    renamed = http.patch("/v1/memories/toy.before", json={"name": "after"})
    assert (renamed.status_code, renamed.json()["id"], renamed.json()["version"]) == (200, "toy.after", 2)
    assert _pixels(_replay(http, "after", 2)) == _pixels(expected)
    assert http.get("/v1/memories/toy.before").status_code == 404
    gone = http.post(
        "/v1/jobs",
        json={"prompt": "a star", "diversity": {"memory": {"name": "before", "version": 2}}},
    )
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "memory_version_gone")
    assert "'after'" in gone.json()["error"]["message"]
    anew = _generate(http, "before")
    assert (anew["memory_version"], anew["data"][0]["diversity"]["num_neighbours"]) == (0, 0)
    assert {entry["image_id"] for entry in _entries(http, "after")} == {
        image["id"] for image in first["data"]
    }
    taken = http.patch("/v1/memories/toy.after", json={"name": "before"})
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "memory_exists")
    for wrong in ({"name": "x", "frozen": True}, {"name": None}, {"name": "X"}):
        assert http.patch("/v1/memories/toy.after", json=wrong).status_code == 400, wrong


def test_a_job_that_runs_follows_its_memory(http):
    """It had read it under the old name, and writes under the new one."""
    _generate(http, "followed")
    job = http.post(
        "/v1/jobs",
        json={"prompt": "a star", "steps": 30_000, "diversity": {"memory": {"name": "followed"}}},
    ).json()
    until_s = time.monotonic() + PATIENCE_S
    while http.get(f"/v1/jobs/{job['id']}").json()["status"] != "running":
        assert time.monotonic() < until_s
        time.sleep(0.02)
    time.sleep(0.2)
    http.patch("/v1/memories/toy.followed", json={"name": "led"}).raise_for_status()
    while (done := http.get(f"/v1/jobs/{job['id']}").json())["status"] == "running":
        assert time.monotonic() < until_s + 2 * PATIENCE_S
        time.sleep(0.05)
    assert done["status"] == "succeeded", done
    assert http.get("/v1/memories/toy.led").json()["num_entries"] == 2
    assert http.get("/v1/memories/toy.followed").status_code == 404


def test_of_many_forks_to_one_name_one_is_made(http):
    """The others find it taken."""
    _generate(http, "raced", n=2)
    statuses = []

    def fork():
        statuses.append(http.post("/v1/memories/toy.raced/fork", json={"name": "won"}).status_code)

    threads = [threading.Thread(target=fork) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201, 409, 409, 409]
    assert http.get("/v1/memories/toy.won").json()["num_entries"] == 2
