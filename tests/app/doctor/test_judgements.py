"""Judgements of facts that no test machine has."""

from pathlib import Path

import pytest
from acl_lines import acl_lines
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from app.catalogue import parse_catalogue
from app.doctor.contradictions import judge_settings
from app.doctor.device import Gpu, TorchFacts, judge_device, judge_devices
from app.doctor.disk import Room, judge_room, judge_snapshots
from app.doctor.finding import State, as_text, ok, problem, shown_url
from app.doctor.models import judge_model
from app.doctor.port import judge_listener
from app.doctor.rights import ROLES, calls, judge_rights
from app.doctor.server import judge_clock, judge_keys, judge_persistence, judge_replicas, judge_version
from app.doctor.versions import judge_packages, judge_python
from app.settings import load_settings

ROOT = Path(__file__).resolve().parents[3]
GPU = Gpu("H200", 140 * 2**30, 141 * 2**30)
BUSY = Gpu("H200", 2**30, 141 * 2**30)
CATALOGUE = """
[[models]]
model_id = "xl"
source = "acme/xl"
latent_space = "xl"
[models.size]
default_width_px = 64
default_height_px = 64
min_px = 64
max_px = 64
multiple_px = 8
"""


@pytest.mark.parametrize(
    ("wanted", "facts", "has_driver", "state", "said"),
    [
        ("cuda", None, True, State.OK, "torch is not installed"),
        ("cuda", TorchFacts("2.9+cpu", None), True, State.PROBLEM, "a build without CUDA"),
        ("cuda", TorchFacts("2.9", "12.8", fault="driver too old"), True, State.PROBLEM, "driver too old"),
        ("cuda:3", TorchFacts("2.9", "12.8", (GPU, GPU)), True, State.PROBLEM, "cuda:0 to cuda:1"),
        ("cuda:1", TorchFacts("2.9", "12.8", (GPU, GPU)), True, State.OK, "140 GiB of 141 GiB free"),
        ("auto", TorchFacts("2.9", "12.8", (BUSY,)), True, State.WARNING, "1 GiB of 141 GiB free"),
        ("auto", TorchFacts("2.9", "12.8"), True, State.WARNING, "would run on the CPU"),
        ("auto", TorchFacts("2.9", "12.8"), False, State.OK, "runs on cpu"),
        ("mps", TorchFacts("2.9", None), False, State.PROBLEM, "has none"),
        ("cpu", TorchFacts("2.9", "12.8", (GPU,)), True, State.OK, "runs on cpu"),
    ],
)
def test_devices(wanted, facts, has_driver, state, said):
    """Whatever torch says of GPUs, the setting decides what is a problem."""
    told = judge_device(wanted, facts, has_driver=has_driver)
    assert told.state is state
    assert said in told.found
    assert bool(told.advice) == (state is not State.OK)


def test_several_devices_are_well_if_each_is():
    """The worst is told, and of GPUs that `auto` leaves alone how to use them."""
    facts = TorchFacts("2.9", "12.8", (GPU, BUSY))
    assert judge_devices(("cuda:0", "cuda:1"), facts, has_driver=True).state is State.WARNING
    missing = judge_devices(("cuda:0", "cuda:1", "cuda:2"), facts, has_driver=True)
    assert missing.state is State.PROBLEM
    assert "cuda:2" in missing.found
    told = judge_devices(("cuda:0", "cuda:1"), TorchFacts("2.9", "12.8", (GPU, GPU)), has_driver=True)
    assert told.state is State.OK
    assert all(f"SPARKE_DEVICE is cuda:{number}" in told.found for number in (0, 1))
    assert "SPARKE_DEVICE=cuda:0,cuda:1" in judge_devices(("auto",), facts, has_driver=True).found


def test_a_driver_that_is_too_old_is_told_apart_from_none():
    """With a driver the advice is a newer one, without it is to install it or to give the container its GPUs."""
    facts = TorchFacts("2.9", "12.8", fault="too old")
    assert "driver for CUDA 12.8 or newer" in judge_device("cuda", facts, has_driver=True).advice
    assert "--gpus all" in judge_device("cuda", facts, has_driver=False).advice


@pytest.mark.parametrize(
    ("skew_s", "state"), [(0.0, State.OK), (-0.9, State.OK), (2.0, State.WARNING), (-6.0, State.PROBLEM)]
)
def test_clocks(skew_s, state):
    """A second is told; a third of the time after which workers count as dead is a problem."""
    assert judge_clock(skew_s, 15.0).state is state


def test_servers_that_no_test_runs():
    """An old version, a replica in place of the first, and a full disk of Redis."""
    assert judge_version({"redis_version": "6.0.16"}, "redis://h").state is State.PROBLEM
    assert judge_version({"redis_version": "6.2.0"}, "redis://h").state is State.OK
    for other in ({"redis_mode": "sentinel"}, {"redis_mode": "cluster", "cluster_enabled": 1}):
        told = judge_version({"redis_version": "7.0.15", **other}, "redis://h")
        assert (told.state, "see docs" in told.found or "mymaster" in told.found) == (State.PROBLEM, True)
    assert judge_replicas({"role": "slave"}, 0).state is State.PROBLEM
    following = {
        "role": "master",
        "connected_slaves": 2,
        "slave0": {"state": "online"},
        "slave1": {"state": "sync"},
    }
    assert judge_replicas(following, 1).state is State.OK
    assert judge_replicas(following, 2).state is State.PROBLEM
    assert (
        judge_persistence({"aof_enabled": 1, "aof_last_write_status": "err"}, "always").state is State.PROBLEM
    )
    assert judge_persistence({"aof_enabled": 1}, None).state is State.OK
    assert judge_keys("0.0.0.0", has_keys=False).state is State.PROBLEM  # noqa: S104 - what it is about
    assert judge_keys("0.0.0.0", has_keys=True).state is State.OK  # noqa: S104 - what it is about


def test_rights_are_those_of_the_document():
    """What is asked for is what docs/redis-security.md gives, and each command of it has a call."""
    for user, role in (("sparke-api", "an API process"), ("sparke-worker", "a worker")):
        words = {word for line in acl_lines(user) for word in line}
        given = {word.removeprefix("+") for word in words if word.startswith("+")} - {"auth", "exec", "multi"}
        asked = {name if f"+{name}" in words else name.partition("|")[0] for name in ROLES[role].split()}
        assert asked == given
        assert set(ROLES[role].split()) <= set(calls())


def test_one_role_is_enough():
    """A user with all rights but those of the other role is well; with neither, the nearer role says what is missing."""
    assert judge_rights(()).found.endswith("an API process and a worker does")
    assert judge_rights({"xack"}).found.endswith("an API process does")
    assert judge_rights({"copy"}).found.endswith("a worker does")
    assert judge_rights({"copy", "xack"}).state is State.PROBLEM
    assert judge_rights({"multi", "exec"}).state is State.PROBLEM


@pytest.mark.parametrize(("free_bytes", "state"), [(9, State.PROBLEM), (10, State.WARNING), (40, State.OK)])
def test_room(free_bytes, state):
    """A warning comes below four times the least."""
    assert judge_room("disk", Room(Path("/"), free_bytes, 100), least_free_bytes=10).state is state


def test_snapshots_that_do_not_fit():
    """More may be kept than there is room for."""
    room = Room(Path("/"), 10, 100)
    assert judge_snapshots(ok("snapshots", ""), room, 11).state is State.WARNING
    assert judge_snapshots(ok("snapshots", ""), room, 10).state is State.OK


@pytest.mark.parametrize(
    ("seen", "state"), [("", State.OK), (None, State.WARNING), ("no such model", State.PROBLEM)]
)
def test_models_of_the_hub(seen, state):
    """In the cache, on the hub, or in neither."""
    [spec] = parse_catalogue(CATALOGUE, folder=None, name="test").values()
    [told] = judge_model(spec, lambda *_: seen)
    assert told.state is state


NEEDS = [
    Requirement(text)
    for text in (
        "redis>=6.0",
        'torch>=2.9; extra == "engine"',
        'sparke[engine]; extra == "worker"',
        'faiss-cpu>=1.11; extra == "worker"',
    )
]


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        ({"redis": "6.4", "torch": "2.9", "faiss-cpu": "1.12"}, "all within"),
        ({"redis": "6.4"}, "no torch, so this machine can run an API and no worker"),
        ({}, "redis is not installed"),
        ({"redis": "5.0"}, "redis is 5.0, wanted >=6.0"),
        ({"redis": "6.4", "torch": "2.1", "faiss-cpu": "1.12"}, "torch is 2.1, wanted >=2.9"),
        ({"redis": "6.4", "torch": "2.9"}, "faiss-cpu is not installed"),
    ],
)
def test_packages(installed, said):
    """An API's always; a worker's where torch is."""
    [told] = judge_packages(NEEDS, installed.get)
    assert said in told.found
    assert (told.state is State.OK) == ("is not" not in said and "wanted" not in said)


def test_python():
    """The range of the package's metadata."""
    assert judge_python("3.10.2", SpecifierSet(">=3.11")).state is State.PROBLEM
    assert judge_python("3.11.2", SpecifierSet(">=3.11")).state is State.OK


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"port": 9000, "worker_metrics_port": 9000}, "are both 9000"),
        ({"redis_url": "redis://10.0.0.1:6379"}, "in the clear"),
        ({"redis_url": "redis+sentinel://u:p@127.0.0.1,10.0.0.2:1/main"}, "at 10.0.0.2 goes in the clear"),
        ({"redis_url": "redis://127.0.0.1:6379"}, "in a folder of this machine"),
        ({"image_url": "s3://bucket/sparke"}, "Redis on this machine alone"),
        ({"heartbeat_ttl_s": 400.0}, "is not below SPARKE_REQUEST_TIMEOUT_S"),
        ({"heartbeat_ttl_s": 9.0}, "one slow command"),
        ({"host": "0.0.0.0", "webhooks_allow_private": True}, "SPARKE_WEBHOOKS_ALLOW_PRIVATE"),  # noqa: S104
    ],
)
def test_settings_that_contradict(given, said):
    """Each is valid, and they do not go together."""
    assert said in " ".join(each.found for each in judge_settings(load_settings(**given), {}))
    assert [each.state for each in judge_settings(load_settings(), {})] == [State.OK]


def test_who_answers_at_the_port():
    """This service ready, this service without workers, and somebody else."""
    states = [judge_listener("h", state).state for state in ("ready", "no_worker", None)]
    assert states == [State.OK, State.WARNING, State.PROBLEM]


def test_how_it_is_told():
    """A line each, one more where there is something to do, one in all; and no secret of a URL."""
    text = as_text([ok("a", "well"), problem("bc", "two\nlines", "mend it")])
    assert text.splitlines() == [
        "ok       a   well",
        "problem  bc  two lines",
        "             → mend it",
        "2 checks: problems 1, warnings 0",
    ]
    assert shown_url("rediss://me:pw@host:1/2?ssl_keyfile=x") == "rediss://host:1/2"
    assert shown_url("unix://me:pw@/run/redis.sock") == "unix:///run/redis.sock"
