"""Prompts that a memory keeps, over HTTP, with a real worker."""

import base64
import io

import pytest
from PIL import Image
from redis import Redis

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture
def sync_redis(redis_url):
    """A plain client of the service's Redis."""
    with Redis.from_url(redis_url) as client:
        yield client


def _remember(http, name, prompt):
    body = {"prompt": prompt, "diversity": {"memory": {"name": name}}}
    http.post("/v1/images/generations", json=body).raise_for_status()


def _forget_records(redis, tenant="default"):
    """As if the time to live of all jobs were over."""
    for key in redis.scan_iter(f"sparke:{{t:{tenant}}}:job:*"):
        redis.delete(key)


def _prompts(http, name):
    entries = http.get(f"/v1/memories/toy.{name}/entries", params={"order": "asc"}).json()["data"]
    return [entry["prompt"] for entry in entries]


def test_prompts_outlive_their_jobs_where_the_memory_keeps_them(http, sync_redis):
    """From when the setting is on until it is off, which takes out those that are there."""
    _remember(http, "told", "a star")
    assert http.get("/v1/memories/toy.told").json()["keep_prompts"] is False
    shaped = http.patch("/v1/memories/toy.told", json={"keep_prompts": True})
    assert shaped.json()["keep_prompts"] is True
    _remember(http, "told", "a ßquare ☆")
    assert _prompts(http, "told") == ["a star", "a ßquare ☆"]
    _forget_records(sync_redis)
    assert _prompts(http, "told") == [None, "a ßquare ☆"]
    log = "sparke:{t:default}:memory:toy:told:log"
    assert "☆".encode() in sync_redis.dump(log)
    http.patch("/v1/memories/toy.told", json={"keep_prompts": False}).raise_for_status()
    assert _prompts(http, "told") == [None, None]
    assert "☆".encode() not in sync_redis.dump(log)
    _remember(http, "told", "a circle")
    _forget_records(sync_redis)
    assert _prompts(http, "told") == [None, None, None]
    assert http.get("/v1/memories/toy.told").json()["version"] == 3


def test_a_rewritten_log_leads_the_same_images(http):
    """Taking prompts out changes no version and no bit of what a replay reads."""
    _remember(http, "replayed", "a star")
    http.patch("/v1/memories/toy.replayed", json={"keep_prompts": True}).raise_for_status()
    _remember(http, "replayed", "a star of gold")
    again = {
        "prompt": "a star",
        "seed": 3,
        "reproducible": True,
        "diversity": {"memory": {"name": "replayed", "version": 2, "write": False}},
    }
    before = http.post("/v1/images/generations", json=again).json()["data"][0]
    http.patch("/v1/memories/toy.replayed", json={"keep_prompts": None}).raise_for_status()
    after = http.post("/v1/images/generations", json=again).json()["data"][0]
    assert before["diversity"]["num_neighbours"] == 2
    assert _pixels(before) == _pixels(after)
    assert before["diversity"] == after["diversity"]


def _pixels(image):
    return Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).tobytes()
