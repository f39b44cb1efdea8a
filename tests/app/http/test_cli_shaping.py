"""`sparke memories create`, `fork`, `rename` and `set`, against a real API."""

import runpy
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from app.cli import cli
from app.errors import InvalidRequest, InvalidValue

FILL = runpy.run_path(str(Path(__file__).with_name("archive_cases.py")))["fill_memory"]


@pytest.fixture
def sparke(api_url):
    """Runs a command of `sparke memories` on the service; what it says on standard output, or what it raises."""

    def run(*arguments):
        with capture_logs():  # the API's, which is a thread of this process
            ended = CliRunner().invoke(cli, ["memories", *arguments, "--url", api_url])
        if ended.exception is not None:
            raise ended.exception
        return ended.stdout

    return run


def test_a_memory_is_made_shaped_forked_and_renamed(sparke, http, settings):
    """Each prints the id, or the settings as they are then; memories are found by name or id."""
    made = sparke("create", "cli-made", "--model", "toy", "--max-entries", "9", "--keep-prompts")
    assert made == "toy.cli-made\n"
    shown = http.get("/v1/memories/toy.cli-made").json()
    assert (shown["max_entries"], shown["keep_prompts"], shown["frozen"]) == (9, True, False)
    told = sparke(
        "set", "cli-made", "--max-entries", "0", "--max-age-s", "60", "--frozen", "--no-keep-prompts"
    )
    assert told == "max_entries\tNone\nmax_age_s\t60\nkeep_prompts\tFalse\nfrozen\tTrue\n"
    FILL(settings.redis_url, "cli-filled", 5)
    assert sparke("fork", "toy.cli-filled", "cli-fork", "--version", "3").endswith("toy.cli-fork\n")
    assert http.get("/v1/memories/toy.cli-fork").json()["num_entries"] == 3
    assert sparke("rename", "cli-fork", "cli-renamed") == "toy.cli-renamed\n"
    assert http.get("/v1/memories/toy.cli-renamed").json()["version"] == 3
    assert http.get("/v1/memories/toy.cli-fork").status_code == 404


def test_what_cannot_be_done_is_said(sparke):
    """No setting, a name that is taken, a memory that is not there."""
    sparke("create", "cli-taken")
    with pytest.raises(InvalidValue, match="give one of --max-entries"):
        sparke("set", "cli-taken")
    with pytest.raises(InvalidRequest, match="is taken"):
        sparke("create", "cli-taken")
    with pytest.raises(InvalidRequest, match="there is no memory 'cli-nothing'"):
        sparke("fork", "cli-nothing", "x")
