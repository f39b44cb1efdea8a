"""The images as they are run: built step by step in an empty Debian, started as their user on a read-only root."""

import os
import re
import runpy
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import yaml
from patience import PATIENCE_S
from processes import free_port
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from app.redis.server_binary import find_server

REHEARSAL = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("rehearsal.py"))))
USER = 10001
START_S = 180

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("debootstrap") or not shutil.which("setpriv"),
        reason="images are rehearsed by root with debootstrap (apt-get install debootstrap)",
    ),
]


@pytest.fixture(scope="module")
def images(root, dockerfiles, tmp_path_factory):
    """The API's image and the worker's with the CPU build of torch."""
    folder = tmp_path_factory.mktemp("images")
    base = REHEARSAL.make_base(folder / "base", ["python3.11", "python3.11-venv"])
    # Where pip's own settings name a file of torch, its index of CPU builds is not asked.
    arguments = {"CPU_TORCH_INDEX": os.environ.get("CPU_TORCH_INDEX", "https://pypi.org/simple")}
    made = {}
    for name in ("api", "worker"):
        (folder / name).mkdir()
        builder = REHEARSAL.Builder(
            base=base, context=root, folder=folder / name, arguments=arguments | {"TORCH_BUILD": "cpu"}
        )
        made[name] = builder.build(dockerfiles[f"docker/{name}.Dockerfile"])
    return made


@pytest.fixture(scope="module")
def compose(root):
    """The compose file's services."""
    return yaml.safe_load((root / "docker-compose.yml").read_text())["services"]


@pytest.fixture
def redis_url(compose, tmp_path):
    """The Redis of the compose file, on a port of loopback."""
    port, options = free_port(), [_with_defaults(word) for word in compose["redis"]["command"][1:]]
    words = [*("--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)), *options]
    with subprocess.Popen([str(find_server().path), *words], stdout=subprocess.DEVNULL) as server:
        with Redis(port=port, retry=Retry(ConstantBackoff(0.1), 100)) as client:
            client.ping()
        yield f"redis://127.0.0.1:{port}/0"
        server.terminate()


@pytest.fixture
def start(images, compose, redis_url, tmp_path, root):
    """Starts what a service of the compose file is, with its settings and volumes; ends it at last."""
    started = []

    def _start(name, words=None, **ports):
        service = compose[name]
        environment = {
            variable: _with_defaults(value)
            for variable, value in service["environment"].items()
            if value is not None
        }
        environment |= {"SPARKE_REDIS_URL": redis_url} | {key: str(port) for key, port in ports.items()}
        volumes = dict(_volume(mount, tmp_path, root) for mount in service["volumes"])
        with (tmp_path / f"{name}{len(started)}.log").open("w") as log:
            process = images[name].start(
                words or service["command"],
                environment=environment,
                volumes=volumes,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        process.environment = environment
        started.append(process)
        return process

    yield _start
    for process in started:
        process.kill()
        process.communicate()


def _with_defaults(text):
    """`${NAME:-default}` as compose reads it where no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def _volume(mount, folder, root):
    """Where a mount of the compose file leads, and what stands for it here: a named volume is its user's folder."""
    source, place = _with_defaults(mount).split(":")[:2]
    if source.startswith("./"):
        return place, root / source
    (folder / source).mkdir(exist_ok=True)
    os.chown(folder / source, USER, USER)
    return place, folder / source


def _wait_until_healthy(image, environment):
    """As Docker asks: the image's own health check, until it ends with 0."""
    deadline_s = time.monotonic() + START_S
    while True:
        checked = image.run(image.health_check, entrypoint=[], environment=environment)
        if checked.returncode == 0:
            return
        assert time.monotonic() < deadline_s, checked.stderr
        time.sleep(1)


def _status(pid):
    """What the kernel says of a process: its user, its rights."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.split(":")[0]: line.split(":")[1].split() for line in lines if ":" in line}


def test_the_service_of_the_compose_file_answers(start, images):
    """A key, an image and its URL, each process without rights; SIGTERM ends both in order."""
    key = start("api", ["keys", "create", "--tenant", "acme"]).communicate(timeout=200)[0].strip().split()[-1]
    api_port, metrics_port = free_port(), free_port()
    api = start("api", SPARKE_PORT=api_port)
    worker = start("worker", SPARKE_WORKER_METRICS_PORT=metrics_port)
    _wait_until_healthy(images["api"], api.environment)
    _wait_until_healthy(images["worker"], worker.environment)
    for process in (api, worker):
        status = _status(process.pid)
        assert set(status["Uid"]) == set(status["Gid"]) == {str(USER)}
        assert (status["CapEff"], status["CapBnd"], status["NoNewPrivs"]) == (["0" * 16], ["0" * 16], ["1"])

    url = f"http://127.0.0.1:{api_port}"
    body = {"prompt": "a red circle", "n": 2, "response_format": "url"}
    answer = httpx.post(
        f"{url}/v1/images/generations",
        json=body,
        headers={"Authorization": f"Bearer {key}"},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    for image in answer.json()["data"]:
        assert httpx.get(image["url"], timeout=PATIENCE_S).content.startswith(b"\x89PNG")
    for process in (worker, api):
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_nothing_but_volumes_can_be_written(images):
    """The root is read-only and no folder of the installation is the user's; /tmp is, and is new each time."""
    for image in images.values():
        for path in ("/opt/sparke/x", "/etc/x", "/var/lib/sparke/x"):
            assert image.run(["touch", path], entrypoint=[]).returncode == 1
        assert image.run(["touch", "/tmp/x"], entrypoint=[]).returncode == 0  # noqa: S108 - of the container
        assert image.run(["ls", "-A", "/tmp"], entrypoint=[]).stdout == ""  # noqa: S108 - of the container


def test_the_api_has_no_torch_and_the_worker_no_cuda(images):
    """Each image holds what it runs: the API nothing of the engine, the worker with the CPU build of torch no CUDA."""
    listed = {
        name: image.run(["python", "-m", "pip", "list", "--format=freeze"], entrypoint=[]).stdout.lower()
        for name, image in images.items()
    }
    assert not re.search(r"^(torch|diffusers|transformers|faiss\S*)==", listed["api"], re.MULTILINE)
    assert re.search(r"^torch==", listed["worker"], re.MULTILINE)
    assert "nvidia" not in listed["worker"]
    assert all("opentelemetry-sdk==" in packages for packages in listed.values())
    for image in images.values():
        assert image.run(["doctor", "--help"]).returncode == 0
