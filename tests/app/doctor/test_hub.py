"""What the hub's files are looked for in: the cache of this machine, then the hub, here a server of the test's own."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from serving import serving

COMMIT = "0" * 40
LOOK = """
from app.doctor.models import look_at_hub
for source in ("acme/cached", "acme/there", "acme/gone", "no such name"):
    print(repr(look_at_hub(source, "model_index.json", None)))
"""


class _Hub(BaseHTTPRequestHandler):
    """Has one model."""

    def do_HEAD(self) -> None:
        is_there = self.path.startswith("/acme/there/resolve/main/")
        self.send_response(200 if is_there else 404)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", "2")
        self.send_header(*(("X-Repo-Commit", COMMIT) if is_there else ("X-Error-Code", "RepoNotFound")))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_the_cache_then_the_hub(tmp_path: Path):
    """In the cache, on the hub, on neither, and a name that no model can have; nothing is fetched."""
    cached = tmp_path / "hub" / "models--acme--cached"
    for path, text in (("refs/main", COMMIT), (f"snapshots/{COMMIT}/model_index.json", "{}")):
        (cached / path).parent.mkdir(parents=True)
        (cached / path).write_text(text, encoding="utf-8")
    with serving(_Hub) as port:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SPARKE_"))}
        env |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{port}"}
        done = subprocess.run(
            [sys.executable, "-P", "-c", LOOK],
            env=env,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    in_cache, on_hub, gone, wrong = done.stdout.splitlines()
    assert (in_cache, on_hub) == ("''", "None")
    assert "no such model" in gone
    assert "no such name" in wrong
    assert not (tmp_path / "hub" / "models--acme--there").exists()
