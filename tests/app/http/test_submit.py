"""`sparke batch submit` as a person runs it, against a real API."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from patience import PATIENCE_S

from app.settings import Settings

ServeApi = Callable[[Settings], str]


def _command(path: Path, url: str, *options: str) -> list[str]:
    return [sys.executable, "-P", "-m", "app.cli", "batch", "submit", str(path), "--url", url, *options]


def _submit(path: Path, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(path, url, *options), capture_output=True, text=True, timeout=200, check=False
    )


def _write(path: Path, *prompts: str) -> Path:
    lines = [
        {"custom_id": f"p{n}", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": prompt}}
        for n, prompt in enumerate(prompts)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def _ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("worker")
def test_a_file_and_its_answers(api_url: str, http: httpx.Client, tmp_path: Path):
    """Standard output names the files that came; a second call brings them again and makes no second batch."""
    path, out = _write(tmp_path / "prompts.jsonl", "a star", "", "a ring"), tmp_path / "out"
    for _ in range(2):
        ended = _submit(path, api_url, "--out", str(out))
        assert ended.returncode == 1, ended.stderr
        assert ended.stdout.split() == [str(out / "prompts.output.jsonl"), str(out / "prompts.error.jsonl")]
        assert ended.stderr.endswith("completed: 2 done, 1 failed\n")
        assert _ids(out / "prompts.output.jsonl") == ["p0", "p2"]
        assert _ids(out / "prompts.error.jsonl") == ["p1"]
    note = json.loads((tmp_path / "prompts.jsonl.batch.json").read_text())
    found = http.get("/v1/batches?limit=100").json()["data"]
    assert sum(batch["input_file_id"] == note["file_id"] for batch in found) == 1


@pytest.mark.usefixtures("worker")
def test_a_whole_batch_is_exit_code_0(api_url: str, tmp_path: Path):
    """Nothing failed, so there is no error file."""
    path = _write(tmp_path / "prompts.jsonl", "a star")
    ended = _submit(path, api_url, "--out", str(tmp_path))
    assert (ended.returncode, ended.stdout.split()) == (0, [str(tmp_path / "prompts.output.jsonl")])


@pytest.mark.usefixtures("worker")
def test_a_call_that_was_killed_before_it_knew_its_batch(api_url: str, tmp_path: Path):
    """The batch of the file is found, not made anew."""
    path = _write(tmp_path / "prompts.jsonl", "a star")
    assert _submit(path, api_url, "--out", str(tmp_path)).returncode == 0
    note_path = tmp_path / "prompts.jsonl.batch.json"
    note = json.loads(note_path.read_text())
    note_path.write_text(json.dumps(note | {"batch_id": None}))
    assert _submit(path, api_url, "--out", str(tmp_path)).returncode == 0
    assert json.loads(note_path.read_text()) == note


def test_ctrl_c_and_cancel(serve_api: ServeApi, settings: Settings, tmp_path: Path):
    """The batch goes on without its caller; a second call may end it, and brings what there is."""
    apart = settings.model_copy(update={"redis_url": f"{settings.redis_url}?db=12"})
    url, path = serve_api(apart), _write(tmp_path / "prompts.jsonl", "a star", "a ring")
    note_path = tmp_path / "prompts.jsonl.batch.json"
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job ignores it, and so would ours
    with subprocess.Popen(_command(path, url), stderr=subprocess.PIPE, text=True) as process:
        while not note_path.exists() or json.loads(note_path.read_text())["batch_id"] is None:
            assert process.poll() is None
            time.sleep(0.02)
        batch_id = json.loads(note_path.read_text())["batch_id"]
        while httpx.get(f"{url}/v1/batches/{batch_id}", timeout=PATIENCE_S).json()["status"] != "in_progress":
            time.sleep(0.02)
        time.sleep(1.5)  # it looks once a second
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=200)[1]
    assert process.returncode == 130, said
    assert f"{batch_id} goes on" in said
    assert httpx.get(f"{url}/v1/batches/{batch_id}", timeout=PATIENCE_S).json()["status"] == "in_progress"
    ended = _submit(path, url, "--out", str(tmp_path), "--cancel")
    assert (ended.returncode, ended.stdout.split()) == (1, [str(tmp_path / "prompts.error.jsonl")])
    assert ended.stderr.endswith("cancelled: 0 done, 2 failed\n")


def test_what_cannot_go_on(api_url: str, tmp_path: Path):
    """One line that says why: a file that changed, a note of another service, none to cancel, no service, no file."""
    path = _write(tmp_path / "prompts.jsonl", "a star")
    note_path = tmp_path / "prompts.jsonl.batch.json"

    def fails(*options: str, url: str = api_url) -> str:
        ended = _submit(path, url, *options)
        assert ended.returncode == 1, ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stderr.splitlines()[-1]

    assert "nothing to cancel" in fails("--cancel")
    assert "the service at http://127.0.0.1:9/ does not answer" in fails(url="http://127.0.0.1:9")
    note = {"url": api_url, "digest": "other", "file_id": "file-1", "batch_id": "batch_1"}
    note_path.write_text(json.dumps(note))
    assert "has changed" in fails()
    note_path.write_text(json.dumps(note | {"url": "http://elsewhere"}))
    assert "another service" in fails()
    note_path.write_text("{")
    assert "is no note" in fails()
    note_path.unlink()
    assert "expected some bytes" in (path.write_text("") == 0 and fails())


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"batch_id": "batch_00000000000000000000000000000000"}, "there is no batch"),
        ({"file_id": "file-00000000000000000000000000000000", "batch_id": None}, "there is no file"),
    ],
)
def test_a_note_of_what_is_no_more_is_named(
    api_url: str, tmp_path: Path, named: dict[str, str | None], said: str
):
    """The record of a batch, or the file that was sent, has expired: which note says so, and what its removal does."""
    path = _write(tmp_path / "prompts.jsonl", "a star")
    note_path = tmp_path / "prompts.jsonl.batch.json"
    note = {"url": api_url, "digest": hashlib.sha256(path.read_bytes()).hexdigest(), "file_id": "file-1"}
    note_path.write_text(json.dumps(note | named))
    ended = _submit(path, api_url)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert said in ended.stderr
    assert f"{note_path} names it; remove that note" in ended.stderr
    assert note_path.exists()  # whoever sends a file twice pays for it twice


def test_a_key_is_sent(serve_api: ServeApi, settings: Settings, tmp_path: Path):
    """From the option or the environment; a wrong one is refused with the service's words."""
    apart = settings.model_copy(update={"redis_url": f"{settings.redis_url}?db=5"})
    url, path = serve_api(apart), _write(tmp_path / "prompts.jsonl", "a star")
    wrong = f"sk-sparke-00000000-{'x' * 43}"
    ended = _submit(path, url, "--api-key", wrong)
    assert ended.returncode == 1
    assert "this API key is not valid" in ended.stderr
    env = {**os.environ, "SPARKE_API_KEY": wrong}
    ended = subprocess.run(
        _command(path, url), env=env, capture_output=True, text=True, timeout=200, check=False
    )
    assert "this API key is not valid" in ended.stderr
