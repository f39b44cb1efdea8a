"""The demo's pods without a cluster: its Redis, jobs, API and worker, with the very arguments and variables they have there.

Only addresses and folders are this machine's.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack

import httpx
import pytest
import redis
from patience import PATIENCE_S
from processes import free_port

from app.redis.server_binary import find_server
from tests.deploy.manifests import render

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

IMAGES = {"sparke-api": "docker/api.Dockerfile", "sparke-worker": "docker/worker.Dockerfile"}


def _status(url):
    try:
        return httpx.get(url, timeout=PATIENCE_S).status_code
    except httpx.TransportError:
        return None


def _until(holds, what, timeout_s=90):
    until_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until_s, what
        time.sleep(0.1)


class Node:
    """Runs what pods run, until the test ends."""

    def __init__(self, manifests, image_environments, folder, stack):
        self._manifests, self._image_environments = manifests, image_environments
        self._folder, self._stack = folder, stack
        self._ports = {"6379": free_port(), "8000": free_port(), "9464": free_port()}

    def port(self, pod):
        """Where its one port is here."""
        (number,) = pod.ports.values()
        return self._ports[str(number)]

    def environment(self, pod):
        """What the container finds in its environment, with this machine's addresses and folders."""
        image = IMAGES.get(pod.container["image"].partition(":")[0])
        given = (self._image_environments[image] if image else {}) | self._manifests.environment(pod)
        here = {
            name: text.replace("@redis:6379", f"@127.0.0.1:{self._ports['6379']}").replace(
                "/var/lib/sparke", str(self._folder)
            )
            for name, text in given.items()
            if name != "PATH"
        }
        for name in ("SPARKE_PORT", "SPARKE_WORKER_METRICS_PORT"):
            if name in here:
                here[name] = str(self._ports[here[name]])
        for name in ("SPARKE_HOST", "SPARKE_WORKER_METRICS_HOST"):
            if name in here:
                here[name] = "127.0.0.1"
        ours = {name: text for name, text in os.environ.items() if not name.startswith("SPARKE_")}
        return ours | here

    def run(self, pod, *words):
        """A command of `sparke` in the pod, to its end."""
        command = [sys.executable, "-P", "-m", "app.cli", *words]
        env = self.environment(pod)
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=200)

    def start(self, pod, command):
        """The pod's process."""
        process = self._stack.enter_context(
            subprocess.Popen(command, env=self.environment(pod), cwd=self._folder, stdout=subprocess.DEVNULL)
        )
        self._stack.callback(process.kill)
        return process

    def start_redis(self, pod):
        """A real server with the container's arguments."""
        environment = self._manifests.environment(pod)
        words = [
            word.replace("$(REDIS_PASSWORD)", environment["REDIS_PASSWORD"]) for word in pod.container["args"]
        ]
        here = ["--port", str(self.port(pod)), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        self.start(pod, [str(find_server().path), *words, *here])
        client = redis.Redis(port=self.port(pod), password=environment["REDIS_PASSWORD"])
        return self._stack.enter_context(client)

    def probe(self, pod, name):
        """What one of its probes is answered."""
        get = pod.container[name]["httpGet"]
        return _status(f"http://127.0.0.1:{self.port(pod)}{get['path']}")


@pytest.fixture
def node(tree, tmp_path, image_environments):
    """The demo's manifests, and what runs them here."""
    (tmp_path / "images").mkdir()
    (tmp_path / "hub").mkdir()
    manifests = render(tree / "jobs" / "cpu-demo")
    with ExitStack() as stack:
        yield manifests, Node(manifests, image_environments, tmp_path, stack)


def _answers(client):
    try:
        return client.ping()
    except redis.RedisError:
        return False


@pytest.mark.skipif(
    shutil.which("redis-cli") is None, reason="redis-cli is absent: apt-get install redis-tools"
)
def test_redis_starts_as_it_is_told_and_its_probe_asks_it(node):
    """A real server takes every argument; the probe's command is answered with the password, and without it is not."""
    manifests, machine = node
    (pod,) = manifests.pods_of("redis")
    client = machine.start_redis(pod)
    _until(lambda: _answers(client), "Redis does not start")
    found = client.config_get("*")
    assert (found["appendonly"], found["appendfsync"], found["maxmemory-policy"]) == (
        "yes",
        "always",
        "noeviction",
    )
    assert (found["maxmemory"], found["stream-node-max-entries"]) == (str(2**30), "1")
    for name in ("startupProbe", "readinessProbe"):
        *shell, line = pod.container[name]["exec"]["command"]
        here = line.replace("redis-cli", f"redis-cli -p {machine.port(pod)}")
        assert subprocess.run([*shell, here], env=machine.environment(pod), check=False).returncode == 0
        env = {"PATH": os.environ["PATH"]}
        assert subprocess.run([*shell, here], env=env, check=False).returncode == 1


def test_the_demo_makes_an_image(node, root):
    """In the page's order: Redis, the first key, the doctor, API and worker by their probes, an image; SIGTERM ends them."""
    manifests, machine = node
    pods = {pod.name: pod for pod in manifests.pods}
    client = machine.start_redis(pods["redis"])
    _until(lambda: _answers(client), "Redis does not start")
    page = (root / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if "exec job/first-key" in line)
    made = machine.run(pods["first-key"], *shlex.split(line.partition(" -- sparke ")[2]))
    key = made.stdout.strip()
    assert key.startswith("sk-sparke-"), made.stderr
    looked = machine.run(pods["doctor"], *pods["doctor"].container["args"], "--json")
    told = json.loads(looked.stdout)
    assert (looked.returncode, told["num_problem"]) == (0, 0), looked.stdout
    migrated = machine.run(pods["migrate"], *pods["migrate"].container["args"])
    assert migrated.returncode == 0, migrated.stderr

    sparke = [sys.executable, "-P", "-m", "app.cli"]
    api = machine.start(pods["api"], [*sparke, *pods["api"].container["args"]])
    _until(lambda: machine.probe(pods["api"], "readinessProbe") == 200, "the API does not get ready")
    assert machine.probe(pods["api"], "livenessProbe") == machine.probe(pods["api"], "startupProbe") == 200
    worker = machine.start(pods["worker"], [*sparke, *pods["worker"].container["args"]])
    _until(lambda: machine.probe(pods["worker"], "startupProbe") == 200, "the worker does not get ready")
    assert (
        machine.probe(pods["worker"], "livenessProbe")
        == machine.probe(pods["worker"], "readinessProbe")
        == 200
    )
    answer = httpx.post(
        f"http://127.0.0.1:{machine.port(pods['api'])}/v1/images/generations",
        json={"prompt": "a small red star on a blue background"},
        headers={"authorization": f"Bearer {key}"},
        timeout=60,
    )
    assert len(answer.json()["data"]) == 1, answer.text
    for process, pod in ((worker, pods["worker"]), (api, pods["api"])):
        process.terminate()
        assert process.wait(pod.spec["terminationGracePeriodSeconds"]) == 0
