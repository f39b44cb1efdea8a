"""`sparke references` as a person runs it, against a real API and a real worker."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.errors import ConfigurationError, InvalidRequest
from app.sending import PICTURES_AT_ONCE, Wanted, run_add

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """More pictures than go at once, and a file that is none."""
    for number in range(PICTURES_AT_ONCE + 3):
        levels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(levels).save(tmp_path / f"{number:02d}.PNG", format="PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_is_sent_once(api_url: str, http, folder: Path):
    """In the order of its names, some at a time; the same command again sends nothing anew; the id is all it prints."""
    command = [sys.executable, "-P", "-m", "app.cli", "references", "add", "sent", str(folder)]
    for _ in range(2):
        done = subprocess.run(
            [*command, "--prompt", "noise", "--url", api_url],
            capture_output=True,
            text=True,
            check=True,
            timeout=200,
        )
        assert done.stdout == "toy.sent\n"
        assert "19 entries" in done.stderr
    entries = http.get("/v1/memories/toy.sent/entries?order=asc&limit=100").json()["data"]
    assert {entry["prompt"] for entry in entries} == {"noise"}
    assert len(entries) == PICTURES_AT_ONCE + 3
    for number in (0, PICTURES_AT_ONCE):
        shown = Image.open(io.BytesIO(http.get(entries[number]["image_url"]).content))
        assert shown.tobytes() == Image.open(folder / f"{number:02d}.PNG").tobytes()


def test_what_cannot_be_sent_is_said(api_url: str, folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A folder without pictures, a file that is none, a name that is none, a file that went."""
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(InvalidRequest, match="no picture there"):
        run_add(Wanted("sent", "", None), [empty], api_url, None)
    with pytest.raises(InvalidRequest, match="image 1: expected a whole"):
        run_add(Wanted("sent-not", "", None), [folder / "notes.txt"], api_url, None)
    with pytest.raises(InvalidRequest, match="memory name"):
        run_add(Wanted("No Name", "", None), [folder / "00.PNG"], api_url, None)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        run_add(Wanted("sent-not", "", None), [folder / "gone.png"], api_url, None)
