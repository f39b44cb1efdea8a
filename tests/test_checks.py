"""What `make secrets` and `make audit` find, and what they say where they cannot look."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def _scan(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / ".ci" / "secrets", folder],
        env={**os.environ, "BIN": str(BIN)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_a_secret_in_a_file_is_found(tmp_path: Path) -> None:
    """It fails, names the files, and repeats no secret; without them the folder passes."""
    planted = {
        "ours.txt": "sk-sparke-0123abcd-" + secrets.token_urlsafe(32),
        "webhook.py": "whsec_" + secrets.token_urlsafe(32).replace("_", "a").replace("-", "b"),
        "tls.pem": trustme.CA().private_key_pem.bytes().decode(),
    }
    for name, secret in planted.items():
        (tmp_path / name).write_text(f"nothing\n{secret}\n", encoding="utf-8")
    found = _scan(tmp_path)
    assert found.returncode == 1, found.stdout + found.stderr
    for name, secret in planted.items():
        assert name in found.stdout
        assert secret.strip() not in found.stdout
        (tmp_path / name).write_text("nothing\n", encoding="utf-8")
    clean = _scan(tmp_path)
    assert (clean.returncode, clean.stdout) == (0, f"secrets: none in {tmp_path}\n")


FAULT = {"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": [], "description": ""}
SKIPPED = {"name": "one", "skip_reason": "Dependency not found on PyPI and could not be audited"}
SOUND = {"name": "two", "version": "2.0", "vulns": []}


@pytest.mark.parametrize(
    ("packages", "options", "code", "said"),
    [
        (
            [SOUND, {"name": "one", "version": "1.0", "vulns": [FAULT]}],
            [],
            1,
            "one 1.0: PYSEC-1; without it: 1.1",
        ),
        ([SOUND, SOUND], [], 0, "audit: no known fault in 2 packages\n"),
        ([SOUND, SKIPPED], [], 0, "no known fault in 1 packages; not looked up: one\n"),
        ([SKIPPED, SKIPPED], [], 0, "audit: SKIPPED"),
        ([SKIPPED], ["--required"], 1, "audit: SKIPPED"),
        (None, [], 0, "audit: SKIPPED"),
        (None, ["--required"], 1, "audit: SKIPPED"),
    ],
)
def test_the_audit_fails_for_faults_and_says_what_it_could_not_look_up(
    tmp_path: Path, packages, options: list[str], code: int, said: str
) -> None:
    """pip-audit calls packages that it could not look up sound, and dies of a database that is away: neither is a pass."""
    answer = f"open(sys.argv[-1], 'w').write({json.dumps({'dependencies': packages})!r})"
    tool = tmp_path / "pip-audit"
    body = "sys.exit(1)" if packages is None else answer
    tool.write_text(f"#!{sys.executable}\nimport sys\n{body}\n", encoding="utf-8")
    tool.chmod(0o700)
    command = [sys.executable, ROOT / ".ci" / "audit.py", "--pip-audit", tool, *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert (ended.returncode, said in ended.stdout) == (code, True), ended.stdout + ended.stderr
