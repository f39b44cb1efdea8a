"""A backup of a whole service as docs/backup.md says: taken while it runs, and started elsewhere."""

import base64
import io
import os
import signal
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from patience import PATIENCE_S
from PIL import Image


def _redis_pids(service):
    names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in service.pids}
    return [pid for pid, name in names.items() if b"redis-server" in name or b"valkey-server" in name]


def _pixels(answer):
    assert answer.status_code == 200, answer.text
    return [
        Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).tobytes()
        for image in answer.json()["data"]
    ]


def _export(service):
    return httpx.get(f"{service.url}/v1/memories/toy.default/export", timeout=PATIENCE_S).content


@pytest.mark.parametrize("is_running", [True, False])
def test_a_copy_is_a_service(start, tmp_path, is_running):
    """Copied while Redis is frozen, or when all has stopped: memories, images, keys of URLs and replays are there."""
    service = start(tmp_path / "data")
    for seed in range(3):
        assert service.generate(seed=seed, n=2).status_code == 200
    asked = {"seed": 7, "n": 2, "reproducible": True, "response_format": "b64_json"}
    made = service.generate(**asked)
    version, pixels = made.json()["memory_version"], _pixels(made)
    url = service.generate(seed=9, response_format="url").json()["data"][0]["url"]
    png, archive = httpx.get(url, timeout=PATIENCE_S).content, _export(service)
    if is_running:
        (redis,) = _redis_pids(service)
        os.kill(redis, signal.SIGSTOP)
    else:
        service.process.terminate()
        service.process.wait(60)
    subprocess.run(["cp", "-a", tmp_path / "data", tmp_path / "copy"], check=True)
    if is_running:
        os.kill(redis, signal.SIGCONT)
        assert service.generate(seed=10).status_code == 200
        service.kill_all()
    copy = start(tmp_path / "copy")
    assert _export(copy) == archive
    assert (
        httpx.get(f"{copy.url}{urlsplit(url).path}?{urlsplit(url).query}", timeout=PATIENCE_S).content == png
    )
    replay = copy.generate(**asked, diversity={"memory": {"version": version, "write": False}})
    assert _pixels(replay) == pixels
    assert copy.generate(seed=11).json()["memory_version"] == 9
