"""The `sparke` command as a person or a script runs it, for tests of what it prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

KEY = re.compile(r"sk-sparke-([0-9a-f]{8})-[A-Za-z0-9_-]{43}\n")


def run_sparke(
    *arguments: str, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """What a command did, given no variable SPARKE_* but these."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPARKE_")}
    command = [sys.executable, "-P", "-m", "app.cli", *arguments]
    return subprocess.run(
        command, env=env | variables, cwd=cwd, capture_output=True, text=True, timeout=200, check=False
    )


def create_key(data_dir: Path, tenant: str) -> str:
    """A new key of a tenant, as the command prints it."""
    made = run_sparke("keys", "create", "--tenant", tenant, "--data-dir", str(data_dir))
    assert made.returncode == 0, made.stderr
    return made.stdout
