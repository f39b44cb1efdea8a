"""Fails where a version of constraints.txt has a known fault: `make audit`.

pip-audit says "no known vulnerabilities" of packages that it could not look up, and fails alike for a fault and for a database that
does not answer. So its report is read here: what was looked up counts, and where nothing was this says SKIPPED and passes, unless
`--required` is given.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ("--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", "10", "--format", "json")
LIMIT_S = 180


def read_report(pip_audit: Path, constraints: Path) -> list[dict[str, Any]]:
    """What pip-audit found of each package; nothing where it did not come to an end."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [pip_audit, "--requirement", constraints, *OPTIONS, "--output", report]
        try:
            subprocess.run(command, capture_output=True, timeout=LIMIT_S, check=False)  # noqa: S603 - a tool of ours
        except subprocess.TimeoutExpired:
            return []
        text = report.read_text(encoding="utf-8") if report.exists() else ""
        return json.loads(text)["dependencies"] if text else []


def judge(packages: list[dict[str, Any]], *, is_required: bool) -> tuple[int, list[str]]:
    """The exit code, and what to say."""
    looked_up = [each for each in packages if "skip_reason" not in each]
    faults = [
        f"{each['name']} {each['version']}: {fault['id']}; without it: {', '.join(fault['fix_versions']) or 'none yet'}"
        for each in looked_up
        for fault in each["vulns"]
    ]
    if faults:
        return 1, [*faults, "audit: take a version without the fault, or say why it does not matter here"]
    if not looked_up:
        reason = "no database of faults answers from here"
        return int(is_required), [f"audit: SKIPPED, {reason}; `--required` makes that an error"]
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    said = f"audit: no known fault in {len(looked_up)} packages"
    return 0, [said + (f"; not looked up: {', '.join(unknown)}" if unknown else "")]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--required", action="store_true", help="Fail where no database answers.")
    parser.add_argument("--pip-audit", type=Path, default=Path(sys.executable).parent / "pip-audit")
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt")
    given = parser.parse_args()
    code, lines = judge(read_report(given.pip_audit, given.constraints), is_required=given.required)
    for line in lines:
        print(line)  # noqa: T201 - what the command says
    return code


if __name__ == "__main__":
    sys.exit(main())
