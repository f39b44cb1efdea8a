"""Questions about memories over HTTP, with a real worker."""

import asyncio

import pytest
from leaving import asking
from patience import wait_until

from app.redis.connection import connect

pytestmark = pytest.mark.usefixtures("worker")


def _remember(http, name, prompt, **members):
    body = {"prompt": prompt, "diversity": {"memory": {"name": name}}, "response_format": "url", **members}
    answer = http.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def _search(http, name, **members):
    return http.post(f"/v1/memories/toy.{name}/search", json={"prompt": "a star", **members})


def test_a_search_shows_entries_the_nearest_first(http):
    """As the list of entries shows them, each with its similarity; limits, versions and a model of the same space."""
    [circle] = _remember(http, "searched", "a circle", seed=4)
    first, second = _remember(http, "searched", "a star", n=2, seed=7)
    answer = _search(http, "searched").json()
    assert (answer["object"], answer["model"], answer["memory_version"]) == ("list", "toy", 3)
    assert [one["image_id"] for one in answer["data"]] == [first["id"], second["id"], circle["id"]]
    assert [one["similarity"] for one in answer["data"]][:2] == pytest.approx([1, 1], abs=1e-3)
    assert answer["data"][2]["similarity"] < 0.99
    urls = {"image_url": None, "thumbnail_url": None}
    listed = {one["version"]: one for one in http.get("/v1/memories/toy.searched/entries").json()["data"]}
    for one in answer["data"]:
        without = {name: value for name, value in one.items() if name != "similarity"}
        expected = listed[one["version"]]
        assert without.keys() == expected.keys()
        assert {**without, **urls} == {**expected, **urls}
        assert http.get(one["image_url"]).status_code == 200
    near = _search(http, "searched", min_similarity=0.999, limit=1).json()["data"]
    assert [one["version"] for one in near] == [2]
    then = _search(http, "searched", version=1).json()
    assert ([one["version"] for one in then["data"]], then["memory_version"]) == ([1], 1)
    again = _search(http, "searched", model="toy").json()["data"]
    assert [one["similarity"] for one in again] == [one["similarity"] for one in answer["data"]]


def test_what_cannot_be_searched_is_refused(http):
    """With what is wrong, and before a worker is asked wherever that can be told."""
    _remember(http, "refusing", "a star")
    for name, members, (status, code, param) in (
        ("nothing", {}, (404, "not_found", None)),
        ("refusing", {"model": "none"}, (404, "model_not_found", "model")),
        ("refusing", {"model": "elsewhere"}, (404, "model_not_found", "model")),
        ("refusing", {"version": 7}, (400, "invalid_request", "version")),
        ("refusing", {"prompt": "  "}, (400, "invalid_value", "prompt")),
        ("refusing", {"limit": 101}, (400, "invalid_value", "limit")),
        ("refusing", {"min_similarity": 2}, (400, "invalid_value", "min_similarity")),
    ):
        answer = _search(http, name, **members)
        error = answer.json()["error"]
        assert answer.status_code == status, (name, members, answer.text)
        assert error["param"] == param
        if code != "invalid_value":
            assert error["code"] == code
    http.delete("/v1/memories/toy.refusing/entries/1")
    gone = _search(http, "refusing", version=1)
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "memory_version_gone")


def test_without_a_worker_for_the_model_the_answer_is_that_of_images(http):
    """503 no_worker, though another model of the same space has a worker: this one was asked for."""
    _remember(http, "unanswered", "a star")
    answer = _search(http, "unanswered", model="unserved")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")
    assert _search(http, "unanswered").json()["model"] == "toy"


def _keys_with(redis_url, needle):
    async def look():
        redis = connect(redis_url)
        try:
            return [
                key async for key in redis.scan_iter("sparke:*:job:*") if needle in str(await redis.dump(key))
            ]
        finally:
            await redis.aclose()

    return asyncio.run(look())


def test_a_question_leaves_nothing(http, settings):
    """No job in the list, nothing charged, and of its prompt no record once it is answered."""
    _remember(http, "quiet", "a star")
    usage, jobs = http.get("/v1/usage").json(), http.get("/v1/jobs").json()["data"]
    assert _search(http, "quiet", prompt="zqxjkvbw").status_code == 200
    assert http.get("/v1/jobs").json()["data"][0]["id"] == jobs[0]["id"]
    charged = [
        {name: day[name] for name in ("jobs", "images")}
        for day in (usage["data"][-1], http.get("/v1/usage").json()["data"][-1])
    ]
    assert charged[0] == charged[1]
    assert _keys_with(settings.redis_url, "zqxjkvbw") == []


def test_a_question_counts_among_the_accepted(http):
    """As the metric says, and as an image does."""

    def accepted():
        name = 'sparke_jobs_accepted_total{model="toy"} '
        (line,) = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name)]
        return float(line.removeprefix(name))

    before = accepted()
    _remember(http, "tallied", "a star")
    assert accepted() == before + 1
    assert _search(http, "tallied").status_code == 200
    assert accepted() == before + 2


def test_a_question_is_answered_beside_many_images(http):
    """The images of the same tenant that wait do not go before it: only the batch that runs does."""
    _remember(http, "busy", "a star")
    jobs = [http.post("/v1/jobs", json={"prompt": "a star", "steps": 400}).json()["id"] for _ in range(40)]
    assert _search(http, "busy").status_code == 200
    states = [http.get(f"/v1/jobs/{job}").json()["status"] for job in jobs]
    assert states.count("queued") > 0
    for job in jobs:
        http.post(f"/v1/jobs/{job}/cancel")


def test_what_is_like_a_prompt_is_forgotten(http, settings):
    """All of it and nothing else, with its images; a second time there is none; the prompt that said so is kept nowhere."""
    _remember(http, "unlike", "a star", n=4)
    _remember(http, "unlike", "one plaid zebra", n=2)
    path, like = "/v1/memories/toy.unlike/forget", {"prompt": "a star", "min_similarity": 0.9}
    url = http.get("/v1/memories/toy.unlike/entries?order=asc").json()["data"][0]["image_url"]
    answer = http.post(path, json={"like": like}).json()
    assert (answer["num_forgotten"], answer["num_remaining"]) == (4, 0)
    assert http.get(url).status_code == 404
    assert {entry["version"] for entry in http.get("/v1/memories/toy.unlike/entries").json()["data"]} == {
        5,
        6,
    }
    again = http.post(path, json={"like": like}).json()
    assert (again["num_forgotten"], again["version"]) == (0, answer["version"])
    http.post(path, json={"like": {**like, "prompt": "zqxjkvbwz"}}).raise_for_status()
    assert _keys_with(settings.redis_url, "zqxjkvbwz") == []


@pytest.mark.parametrize(
    ("like", "status"),
    [
        ({"prompt": "a star"}, 400),
        ({"prompt": " ", "min_similarity": 0.9}, 400),
        ({"prompt": "a star", "min_similarity": 1.1}, 400),
        ({"prompt": "a star", "min_similarity": 0.9, "model": "none"}, 404),
        ({"prompt": "a star", "min_similarity": 0.9, "model": "unserved"}, 503),
    ],
)
def test_a_likeness_that_nobody_can_tell_forgets_nothing(http, like, status):
    """One without a bound neither, nor where no worker is there to ask."""
    _remember(http, "kept-so", "a star")
    before = http.get("/v1/memories/toy.kept-so").json()["num_entries"]
    assert http.post("/v1/memories/toy.kept-so/forget", json={"like": like}).status_code == status
    assert http.get("/v1/memories/toy.kept-so").json()["num_entries"] == before


def test_forgetting_is_seen_by_the_next_search(http):
    """What was forgotten is not in its answer."""
    _remember(http, "forgetful", "a star", n=3)
    assert [one["version"] for one in _search(http, "forgetful").json()["data"]] == [1, 2, 3]
    http.delete("/v1/memories/toy.forgetful/entries/2")
    assert [one["version"] for one in _search(http, "forgetful").json()["data"]] == [1, 3]


def test_whoever_goes_away_cancels_the_question(http, settings):
    """Nobody else could use its answer."""
    _remember(http, "left", "a star")
    blocker = http.post("/v1/jobs", json={"prompt": "a star", "steps": 1_000_000}).json()["id"]
    with http.stream("GET", f"/v1/jobs/{blocker}/events") as events:
        assert any("progress" in line for line in events.iter_lines())  # the device is busy
    with asking(f"{http.base_url}/v1/memories/toy.left/search", {"prompt": "vwpqzzk"}):
        wait_until(lambda: _states(settings.redis_url, "vwpqzzk"))
    wait_until(lambda: {"cancelled", "cancel"} & {*_states(settings.redis_url, "vwpqzzk")})
    http.post(f"/v1/jobs/{blocker}/cancel")


def _states(redis_url, needle):
    """The states of the records that hold the needle; `cancel` where that was asked for."""

    async def look():
        redis = connect(redis_url)
        try:
            found = []
            async for key in redis.scan_iter("sparke:*:job:job_*"):
                if await redis.type(key) != b"hash":
                    continue
                job, state, cancel = await redis.hmget(key, "job", "state", "cancel_requested_at_ms")
                if needle in str(job):
                    found.append("cancel" if cancel else state.decode())
            return found
        finally:
            await redis.aclose()

    return asyncio.run(look())


def test_a_question_is_no_job_of_anybodys(http, settings):
    """Whoever guesses its id is told that there is none, and can neither follow nor cancel it."""

    async def plant():
        redis = connect(settings.redis_url)
        try:
            async for key in redis.scan_iter("sparke:{t:default}:job:job_*"):
                if await redis.type(key) == b"hash" and await redis.hget(key, "quiet"):
                    return key.decode().rpartition(":")[2]
        finally:
            await redis.aclose()

    _remember(http, "hidden", "a star")
    _search(http, "hidden", model="unserved")  # fails, so its record stays for a while
    job_id = asyncio.run(plant())
    assert job_id
    for answer in (
        http.get(f"/v1/jobs/{job_id}"),
        http.get(f"/v1/jobs/{job_id}/events"),
        http.post(f"/v1/jobs/{job_id}/cancel"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def _ask_preview(http, name, **members):
    return http.post(f"/v1/memories/toy.{name}/preview", json={"prompt": "a star", **members})


def test_a_preview_tells_what_guides_the_next_images(http):
    """The neighbours that an image at this version has, shown as entries, and about how far it is pushed."""
    _remember(http, "previewed", "a star", n=6, seed=10)
    _remember(http, "previewed", "a circle", seed=60)
    answer = _ask_preview(http, "previewed", diversity={"strength": 0.5, "num_neighbours": 4}).json()
    assert (answer["object"], answer["model"], answer["memory_version"]) == ("memory.preview", "toy", 7)
    assert (answer["num_qualified"], answer["num_neighbours"], len(answer["neighbours"])) == (6, 4, 4)
    assert {one["prompt"] for one in answer["neighbours"]} == {"a star"}
    assert [one["similarity"] for one in answer["neighbours"]] == pytest.approx([1] * 4, abs=1e-3)
    assert [one["prompt_kernel"] for one in answer["neighbours"]] == pytest.approx([1] * 4, abs=1e-2)
    assert [one["weight"] for one in answer["neighbours"]] == pytest.approx([1.5] * 4, rel=1e-3)
    memory = {"name": "previewed", "version": answer["memory_version"]}
    diversity = {"strength": 0.5, "num_neighbours": 4, "memory": memory}
    bodies = [{"prompt": "a star", "seed": seed, "diversity": diversity} for seed in range(8)]
    images = [http.post("/v1/images/generations", json=body).json() for body in bodies]
    told = [image["data"][0]["diversity"] for image in images]
    assert {one["num_neighbours"] for one in told} == {answer["num_neighbours"]}
    push = sum(one["push"] for one in told) / len(told)
    assert 0.4 < push / answer["expected_push"] < 2.5, (
        "an estimate, of images one of which may be pushed far more than another"
    )
    assert len(_ask_preview(http, "previewed", limit=1).json()["neighbours"]) == 1
    assert _ask_preview(http, "previewed", diversity={"strength": 0}).json()["expected_push"] == 0
    assert http.get("/v1/memories/toy.previewed").json()["version"] == 7


def test_a_preview_refuses_what_images_refuse(http):
    """With the names of the members as images have them."""
    _remember(http, "picky", "a star")
    for diversity, status, code, param in (
        ({"memory": {"name": "other"}}, 400, "invalid_value", "diversity.memory.name"),
        ({"memory": {"version": 9}}, 400, "invalid_request", "diversity.memory.version"),
        ({"novelty": {"reference": "none", "weight": 1}}, 404, "reference_not_found", None),
        ({"strength": 2}, 400, None, "diversity.strength"),
    ):
        answer = _ask_preview(http, "picky", diversity=diversity)
        error = answer.json()["error"]
        assert answer.status_code == status, answer.text
        assert code in (None, error["code"])
        assert error["param"] == (param or "diversity.novelty.reference")
    assert _ask_preview(http, "picky", diversity={"memory": {"name": "picky"}}).status_code == 200


def test_stats_tell_size_growth_and_scores(http):
    """The scores of a sample, the same for as long as the version is; without one no worker is asked."""
    _remember(http, "counted", "a star", n=5, seed=3)
    _remember(http, "counted", "a circle", n=5, seed=90)
    http.delete("/v1/memories/toy.counted/entries/4")
    stats = http.get("/v1/memories/toy.counted/stats").json()
    memory = http.get("/v1/memories/toy.counted").json()
    assert [stats[name] for name in ("id", "version", "num_entries", "bytes")] == [
        memory[name] for name in ("id", "version", "num_entries", "bytes")
    ]
    assert [point["version"] for point in stats["growth"]] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert stats["growth"][0]["at"] >= memory["created_at"]
    scores = stats["scores"]
    assert (scores["num_sampled"], scores["memory_version"], scores["model"]) == (9, 11, "toy")
    for name in ("rke", "cond_rke", "vendi", "cond_vendi"):
        assert 1 <= scores[name] <= 9
    few = [http.get("/v1/memories/toy.counted/stats", params={"sample": 4}).json() for _ in range(2)]
    assert few[0]["scores"] == few[1]["scores"]
    assert few[0]["scores"]["num_sampled"] == 4
    url = "/v1/memories/toy.counted/stats"
    assert http.get(url, params={"sample": 0, "model": "unserved"}).json()["scores"] is None
    assert http.get(url, params={"model": "unserved"}).status_code == 503
    assert http.get(url, params={"sample": 2001}).status_code == 400
    assert http.get("/v1/memories/toy.nowhere/stats").status_code == 404
