"""`sparke doctor` as a person or a script runs it: healthy set-ups, and what must not make it crash."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis as blocking_redis

from app.redis.embedded import EmbeddedRedis

ROOT = Path(__file__).resolve().parents[3]


def _sparke(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPARKE_")}
    command = [sys.executable, "-P", "-m", "app.cli", "doctor", *arguments]
    return subprocess.run(
        command, env=env | variables, capture_output=True, text=True, timeout=200, check=False
    )


def test_a_healthy_set_up(tmp_path):
    """The command ends with 0 beside a running Redis, in JSON, and leaves neither an object nor a key."""
    (tmp_path / "images").mkdir()
    (tmp_path / "files").mkdir()
    with EmbeddedRedis.start(tmp_path) as server, blocking_redis.Redis.from_url(server.url) as client:
        done = _sparke("--json", "--least-free-bytes", "0", SPARKE_DATA_DIR=str(tmp_path), SPARKE_PORT="0")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        told = json.loads(done.stdout)
        assert told["num_problem"] == 0
        states = {each["check"]: each["state"] for each in told["checks"]}
        assert {
            name
            for name, state in states.items()
            if name.startswith(("redis", "image", "file")) and state != "ok"
        } == set()
        assert states["redis rights"] == "ok"
        assert client.dbsize() == 0
    assert [
        path for name in ("images", "files") for path in (tmp_path / name).rglob("*") if path.is_file()
    ] == []


def test_before_the_first_start(tmp_path):
    """Nothing is there yet: that is no problem, nothing is made, and a typing error in a variable is a warning."""
    where = tmp_path / "data"
    done = _sparke("--data-dir", str(where), "--least-free-bytes", "0", SPARKE_PORT="0", SPARKE_DEVISE="cuda")
    assert done.returncode == 0, done.stdout
    assert "`sparke serve` starts one" in done.stdout
    assert "no setting is called SPARKE_DEVISE" in done.stdout
    assert not where.exists()


def test_a_machine_without_torch(tmp_path):
    """An API's: models and device are not looked for, and it says so; nothing that only a worker has is loaded."""
    look = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'sparke_engine', 'diffusers', 'faiss', 'huggingface_hub'));"
        " from app.cli import main; sys.argv[1:] = ['doctor', '--least-free-bytes', '0']; main()"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPARKE_")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", look],
        env=env | {"SPARKE_PORT": "0", "SPARKE_DATA_DIR": str(tmp_path), "SPARKE_DEVICE": "cuda"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("not looked for: torch is not installed") == 2


def test_a_torch_that_cannot_be_loaded(tmp_path):
    """What it says is told: a library that is missing, most often."""
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12 is missing')", encoding="utf-8")
    look = "from app.doctor.device import *; print(examine_device(Settings()))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", look],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert "torch cannot be loaded: libcudart.so.12 is missing" in done.stdout, done.stderr
    assert "State.PROBLEM" in done.stdout


def test_cuda_without_cuda(tmp_path):
    """The command ends with 1 and says what to install."""
    done = _sparke(
        "--data-dir", str(tmp_path), SPARKE_DEVICE="cuda", SPARKE_PORT="0", CUDA_VISIBLE_DEVICES=""
    )
    assert done.returncode == 1, done.stdout
    [line] = [line for line in done.stdout.splitlines() if "SPARKE_DEVICE is cuda" in line]
    assert line.startswith("problem  device")
    assert "SPARKE_DEVICE to cpu" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_cannot_be_seen(tmp_path):
    """By a user who may not even look into the folder above: a problem of each that names it, and no crash."""
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    look = (
        "import asyncio, os, sys; from pathlib import Path; from app.doctor.disk import *;"
        " from app.doctor.stores import examine_stores; from app.settings import load_settings;"
        " here = load_settings(data_dir=Path(sys.argv[1])); os.setegid(65534); os.seteuid(65534);"
        " found = [*examine_data_dir(here, least_free_bytes=0), examine_snapshots(here),"
        " *asyncio.run(examine_stores(here, least_free_bytes=0))];"
        " print(*(each.check for each in found if each.state == 'problem'), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", look, str(hidden / "data")],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["data directory", "snapshots", "image store", "file store"]
