"""The commands of docs/backup.md that copy append-only files, as they stand there."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "backup.md"


def copy_append_only(source: Path, target: Path, env: Mapping[str, str] | None = None) -> None:
    """Of the server in one folder into another: a folder of files since Redis 7, and one file before."""
    if (source / "appendonlydir").exists():
        block = re.search(r"^until .*?done$", _PAGE.read_text(), re.DOTALL | re.MULTILINE)
        assert block is not None
        command = block[0].replace("BACKUP", str(target))
        subprocess.run(["bash", "-c", command], cwd=source, env=env, check=True, timeout=200)
    else:
        shutil.copy2(source / "appendonly.aof", target)
