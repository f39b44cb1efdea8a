"""What pip would install is whole. Slow, since building fetches the build backend from a package index."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_BYTES = 15 * 2**20
MAX_WEIGHTS_BYTES = 24 * 2**20


@pytest.mark.slow
def test_the_wheel_carries_every_file_of_the_packages(tmp_path: Path):
    """Sources, scripts, the catalogue, type markers, weights, licence and command are in it, and nothing else."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--quiet",
        "--wheel-dir",
        str(tmp_path),
    ]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("sparke-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {info.filename for info in archive.infolist()}
        entry_points = next(name for name in held if name.endswith("entry_points.txt"))
        assert "sparke = app.cli:main" in archive.read(entry_points).decode()
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in ("app", "sparke_engine")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"app/models.toml", "app/py.typed", "app/jobs/commit.lua", "sparke_engine/py.typed"} <= expected
    assert {name for name in held if ".dist-info/" not in name} == expected
    assert any(name.endswith("/licenses/LICENSE") for name in held)


def test_weights_stay_small():
    """All weights together and each file of the packages keep to what a repository can carry."""
    sizes = {path: path.stat().st_size for path in (ROOT / "sparke_engine").rglob("*") if path.is_file()}
    weights = [size for path, size in sizes.items() if path.suffix == ".safetensors"]
    assert len(weights) >= 4
    assert sum(weights) <= MAX_WEIGHTS_BYTES
    assert max(sizes.values()) <= MAX_FILE_BYTES
