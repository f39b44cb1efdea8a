"""One machine, one command: it serves, stops, and survives what kills it."""

import base64
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from patience import PATIENCE_S, wait_until
from PIL import Image

# The names of the conftest, which pytest imports under no name that a test could import.
Service = Any
Start = Callable[..., Service]


def _memory(answer: httpx.Response) -> tuple[int, list[int]]:
    """The version that was read, and how many neighbours each image had."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["memory_version"], [image["diversity"]["num_neighbours"] for image in body["data"]]


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_stops_without_a_trace(start: Start, tmp_path: Path, number: signal.Signals):
    """The URL alone on standard output, an image, then exit code 0 and no process left behind."""
    service = start(tmp_path / "data")
    answer = service.generate(n=2)
    images = [base64.b64decode(image["b64_json"]) for image in answer.json()["data"]]
    assert all(image.startswith(b"\x89PNG") for image in images)
    pids = service.pids
    assert len(pids) == 3
    assert (tmp_path / "data" / "snapshots").is_dir()
    service.process.send_signal(number)
    assert service.process.wait(PATIENCE_S) == 0
    assert all(_is_gone(pid) for pid in pids)
    assert service.said == [f"SPARKE is ready: {service.url}\n"]


def test_each_device_has_a_worker(start: Start, tmp_path: Path):
    """Two of them: both make images, one that is killed comes back, and nothing of them is left at the end."""
    service = start(tmp_path / "data", SPARKE_DEVICE="cpu,cpu")

    def num_ready() -> int:
        ready: int = httpx.get(f"{service.url}/readyz", timeout=PATIENCE_S).json()["workers"]["ready"]
        return ready

    wait_until(lambda: num_ready() == 2, "the second worker is not ready")
    before = set(service.worker_pids)
    assert len(before) == 2
    os.kill(min(before), signal.SIGKILL)
    assert service.generate(n=2).status_code == 200
    wait_until(lambda: len(set(service.worker_pids) - before) == 1, "it is not started again")
    wait_until(lambda: num_ready() >= 2, "it is not ready again")
    pids = service.pids
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(PATIENCE_S) == 0
    assert all(_is_gone(pid) for pid in pids)


def test_kill_9_of_everything_keeps_the_memory(start: Start, tmp_path: Path):
    """Forty images, SIGKILL to all, a new start: forty entries, and guidance uses them; the keys are there too."""
    first = start(tmp_path / "data")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda seed: first.generate(n=10, seed=1000 * seed), range(4)))
    assert all(answer.status_code == 200 for answer in answers)
    first.kill_all()
    second = start(tmp_path / "data")
    assert _memory(second.generate(n=1)) == (40, [40])


def test_kill_9_of_the_parent_takes_the_children(start: Start, tmp_path: Path):
    """Nothing is left that would hold the data directory or the GPU."""
    service = start(tmp_path / "data")
    pids = service.pids
    service.process.kill()
    service.process.wait()
    wait_until(lambda: all(_is_gone(pid) for pid in pids), "a child outlived its parent")


def test_two_workers_on_one_redis_see_each_others_images(start: Start, tmp_path: Path):
    """Whoever makes an image, the next request is pushed away from it, and no version is given twice."""
    service = start(tmp_path / "data")
    env = {
        **os.environ,
        "SPARKE_MODELS_FILE": str(tmp_path / "models.toml"),
        "SPARKE_DEVICE": "cpu",
        "SPARKE_MAX_BATCH_IMAGES": "1",
    }
    command = [sys.executable, "-P", "-m", "app.cli", "worker", "--data-dir", str(tmp_path / "data")]
    second = subprocess.Popen(command, env=env)
    try:
        wait_until(lambda: _num_ready(service) == 2, "the second worker did not get ready")
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda seed: service.generate(seed=10 * seed, steps=300), range(24)))
        assert all(answer.status_code == 200 for answer in answers)
        os.kill(service.worker_pids[0], signal.SIGSTOP)  # only the second one is left to answer
        try:
            assert _memory(service.generate(seed=9000)) == (24, [24])
        finally:
            os.kill(service.worker_pids[0], signal.SIGCONT)
        second.send_signal(signal.SIGTERM)
        assert second.wait(60) == 0
        assert _memory(service.generate(seed=9001)) == (25, [25])
    finally:
        if second.poll() is None:
            second.kill()
            second.wait()


def _num_ready(service: Service) -> int:
    return int(httpx.get(f"{service.url}/readyz", timeout=PATIENCE_S).json()["workers"]["ready"])


def test_a_worker_killed_with_a_job_in_hand(start: Start, tmp_path: Path):
    """The request waits, and another worker makes its image, once: one entry, and the next request sees it."""
    quick = {"SPARKE_HEARTBEAT_INTERVAL_S": "0.3", "SPARKE_HEARTBEAT_TTL_S": "6"}
    service = start(tmp_path / "data", **quick)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(service.generate, steps=20_000)
        wait_until(lambda: _runs(service), "the worker did not begin")
        os.kill(service.worker_pids[0], signal.SIGKILL)
        answer = pending.result()
    assert _memory(answer) == (0, [0])
    assert _memory(service.generate()) == (1, [1])


def test_a_worker_killed_with_an_edit_in_hand(start: Start, tmp_path: Path):
    """Another worker begins with the same picture: at a little strength the image is near it."""
    quick = {"SPARKE_HEARTBEAT_INTERVAL_S": "0.3", "SPARKE_HEARTBEAT_TTL_S": "6"}
    service, picture = start(tmp_path / "data", **quick), io.BytesIO()
    Image.new("RGB", (64, 64), (20, 20, 20)).save(picture, "PNG")

    def edit() -> httpx.Response:
        fields = {"prompt": "a star", "steps": "20000", "edit_strength": "0.1"}
        files = {"image": ("a.png", picture.getvalue())}
        return httpx.post(f"{service.url}/v1/images/edits", data=fields, files=files, timeout=250)

    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(edit)
        wait_until(lambda: _runs(service), "the worker did not begin")
        os.kill(service.worker_pids[0], signal.SIGKILL)
        answer = pending.result()
    assert _memory(answer) == (0, [0])
    image = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
    lower_half = image.crop((0, 32, 64, 64)).convert("L").histogram()
    assert sum(level * count for level, count in enumerate(lower_half)) / sum(lower_half) < 60
    assert _memory(service.generate()) == (1, [1])


def test_a_job_that_kills_its_workers_ends_as_poison(start: Start, tmp_path: Path):
    """After as many workers as the setting allows, the request is told so, and not to try again; others are served."""
    quick = {
        "SPARKE_HEARTBEAT_INTERVAL_S": "0.3",
        "SPARKE_HEARTBEAT_TTL_S": "6",
        "SPARKE_MAX_ATTEMPTS": "2",
    }
    service = start(tmp_path / "data", **quick)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(service.generate, steps=10_000_000)
        for attempt in (1, 2):
            wait_until(partial(_runs, service, attempt=attempt), "no worker began")
            os.kill(service.worker_pids[0], signal.SIGKILL)
        answer = pending.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "poison")
    assert answer.headers["x-should-retry"] == "false"
    assert _memory(service.generate()) == (0, [0])
    assert (
        'sparke_dead_letters{model="toy"} 1.0' in httpx.get(f"{service.url}/metrics", timeout=PATIENCE_S).text
    )


def _runs(service: Service, *, attempt: int = 1) -> bool:
    """True while a job runs for the so-many-th time."""
    found = httpx.get(f"{service.url}/v1/jobs", params={"status": "running"}, timeout=PATIENCE_S).json()[
        "data"
    ]
    return any(job["num_attempts"] >= attempt for job in found)


def test_it_stops_while_it_still_loads(tmp_path: Path):
    """SIGTERM before the worker is ready ends all the same: exit code 0, nothing said, no lock left."""
    command = [sys.executable, "-P", "-m", "app.cli", "serve", "--port", "0", "--data-dir", str(tmp_path)]
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        with process.stderr:
            assert process.stderr.readline() == "Loading sparke-demo ...\n"
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
        assert process.wait(PATIENCE_S) == 0
        assert process.communicate()[0] == ""


def test_a_port_in_use_leaves_nothing_behind(tmp_path: Path):
    """A message that names the port, exit code 1, and not even a data directory."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-P", "-m", "app.cli", "serve", "--port", str(port)]
        ended = subprocess.run(
            [*command, "--data-dir", str(tmp_path / "data")], capture_output=True, text=True, check=False
        )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"port {port}" in ended.stderr
    assert not (tmp_path / "data").exists()


def test_it_is_not_open_to_others_without_keys(start: Start, tmp_path: Path):
    """On another address it refuses to start until there is a key, and says how to make one; then it asks for it."""
    data_dir = str(tmp_path / "data")
    command = [sys.executable, "-P", "-m", "app.cli", "serve", "--host", "0.0.0.0", "--port", "0"]  # noqa: S104
    ended = subprocess.run([*command, "--data-dir", data_dir], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "sparke keys create --tenant NAME" in ended.stderr
    make = [sys.executable, "-P", "-m", "app.cli", "keys", "create", "--tenant", "acme"]
    made = subprocess.run([*make, "--data-dir", data_dir], capture_output=True, text=True, check=True)
    service = start(tmp_path / "data", SPARKE_HOST="0.0.0.0")  # noqa: S104
    assert service.generate().status_code == 401
    headers = {"authorization": f"Bearer {made.stdout.strip()}"}
    assert httpx.get(f"{service.url}/v1/models", headers=headers, timeout=PATIENCE_S).status_code == 200
