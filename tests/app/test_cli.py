"""The `sparke` command as a person or a script runs it."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from command_line import KEY, create_key, run_sparke
from patience import PATIENCE_S
from rich.text import Text
from typer.main import get_command

from app.cli import cli
from app.redis.embedded import EmbeddedRedis, running_url


def test_a_key_is_alone_on_standard_output(tmp_path: Path):
    """Without a server, one is started for the moment and nothing of it stays but the data."""
    key = create_key(tmp_path, "acme")
    assert KEY.fullmatch(key)
    assert running_url(tmp_path) is None
    listed = run_sparke("keys", "list", SPARKE_DATA_DIR=str(tmp_path)).stdout
    assert re.fullmatch(
        rf"{key.split('-')[2]}\tacme\t[-0-9T:]+Z\tactive\tgenerate,read,manage\tnever\tnever\t\n", listed
    )
    assert key.strip() not in listed


@pytest.mark.parametrize(
    "command",
    [
        ("keys", "list"),
        ("tenants", "list"),
        ("audit",),
        ("redis", "migrate"),
        ("memories", "list", "--tenant", "acme"),
    ],
)
def test_a_data_directory_that_is_none_is_said(tmp_path: Path, command: tuple[str, ...]):
    """A misspelt one has nothing to list or to change: where that is, what to do, and no folder is made."""
    asked = run_sparke(*command, "--data-dir", "tpyo", cwd=tmp_path)
    assert (asked.returncode, asked.stdout) == (1, "")
    assert asked.stderr.startswith(f"sparke: there is no Redis in the data directory {tmp_path / 'tpyo'}: ")
    assert asked.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_first_key_says_where_it_has_made_a_redis(tmp_path: Path):
    """So a misspelt data directory is seen; the next key says nothing of it."""
    made = [
        run_sparke("keys", "create", "--tenant", "acme", "--data-dir", "data", cwd=tmp_path) for _ in range(2)
    ]
    assert [KEY.fullmatch(each.stdout) is not None for each in made] == [True, True]
    assert [
        f"A new Redis is made in the data directory {tmp_path / 'data'}" in each.stderr for each in made
    ] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("command", "code"),
    [(("keys", "list"), 1), (("memories", "check", "archive"), 1), (("doctor", "--json"), 0), (("api",), 1)],
)
def test_every_command_tells_of_a_variable_that_nothing_heeds(
    tmp_path: Path, command: tuple[str, ...], code: int
):
    """Once, on standard error or as the doctor's finding, with what was meant: it may be where the data are."""
    (tmp_path / "archive").write_bytes(b"none")
    asked = run_sparke(*command, cwd=tmp_path, SPARKE_REDSI_URL="redis://r")
    assert asked.returncode == code
    said = asked.stdout if command[0] == "doctor" else asked.stderr
    assert said.count("did you mean SPARKE_REDIS_URL?") == 1


def test_keys_while_a_server_runs(tmp_path: Path):
    """The running server's Redis is used; revoking shows in the list; an unknown key is an error."""
    with EmbeddedRedis.start(tmp_path):
        key_id = create_key(tmp_path, "acme").split("-")[2]
        create_key(tmp_path, "other")
        where = ("--data-dir", str(tmp_path))
        revoked = run_sparke("keys", "revoke", key_id, *where)
        assert (revoked.returncode, revoked.stdout) == (0, "")
        lines = run_sparke("keys", "list", "--tenant", "acme", *where).stdout.splitlines()
        assert len(lines) == 1
        assert "\trevoked " in lines[0]
        unknown = run_sparke("keys", "revoke", "00000000", *where)
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert unknown.stderr.startswith("sparke: there is no API key")


def test_a_key_is_rotated_and_both_are_told_apart(tmp_path: Path):
    """The successor alone on standard output, with the same name and scopes; the old one works for the grace alone."""
    where = ("--data-dir", str(tmp_path))
    with EmbeddedRedis.start(tmp_path):
        asked = ("--name", "ci", "--scopes", "admin,read", "--expires-in", "90d")
        made = run_sparke("keys", "create", "--tenant", "ops", *asked, *where)
        assert "for read, admin." in made.stderr
        key_id = made.stdout.split("-")[2]
        rotated = run_sparke("keys", "rotate", key_id, "--grace", "0s", *where)
        assert KEY.fullmatch(rotated.stdout), rotated.stderr
        rows = [line.split("\t") for line in run_sparke("keys", "list", *where).stdout.splitlines()]
        found = {row[0]: row for row in rows}
        assert {(row[4], row[7]) for row in found.values()} == {("read,admin", "ci")}
        assert (found[key_id][3], found[rotated.stdout.split("-")[2]][3]) == ("expired", "active")
        again = run_sparke("keys", "rotate", key_id, *where)
        assert (again.returncode, again.stdout) == (1, "")
        assert again.stderr.startswith(f"sparke: key {key_id} is expired")


def test_tenants_from_their_first_key_to_their_end(tmp_path: Path):
    """Listed with their first key; quotas are set and shown; deleted, a tenant has no key and is named until it is gone."""
    where = ("--data-dir", str(tmp_path))
    with EmbeddedRedis.start(tmp_path):
        create_key(tmp_path, "acme")
        assert run_sparke("tenants", "list", *where).stdout == "acme\tactive\ndefault\tactive\n"
        set_quotas = run_sparke("tenants", "quotas", "acme", "--images-per-day", "5", *where)
        assert set_quotas.returncode == 0, set_quotas.stderr
        shown = run_sparke(
            "tenants", "show", "acme", *where, SPARKE_REQUESTS_PER_MINUTE="9"
        ).stdout.splitlines()
        assert {"images_per_day\t5\tset", "requests_per_minute\t9\tdefault"} < set(shown)
        assert "max_stored_bytes\tno bound\tdefault" in shown
        assert run_sparke("tenants", "usage", "acme", *where).stdout == ""
        wrong = run_sparke("tenants", "quotas", "nobody", *where)
        assert (wrong.returncode, wrong.stderr) == (
            1,
            "sparke: there is no tenant 'nobody'; its first key makes one\n",
        )
        assert run_sparke("tenants", "delete", "acme", *where).returncode == 1  # nobody says yes
        assert run_sparke("keys", "list", *where).stdout != ""
        deleted = run_sparke("tenants", "delete", "acme", "--yes", *where)
        assert "lost 1 keys" in deleted.stderr
        assert run_sparke("tenants", "list", *where).stdout.startswith("acme\tdeleting\n")
        assert run_sparke("keys", "list", *where).stdout == ""
        again = run_sparke("keys", "create", "--tenant", "acme", *where)
        assert (again.returncode, again.stdout) == (1, "")
        assert "is being deleted" in again.stderr


@pytest.mark.parametrize(
    ("option", "said"),
    [(("--scopes", "root"), "scopes are generate"), (("--expires-in", "soon"), "--expires-in")],
)
def test_a_wrong_option_of_a_key_is_said(tmp_path: Path, option: tuple[str, str], said: str):
    """One line that says what is expected; nothing is made."""
    made = run_sparke("keys", "create", "--tenant", "acme", *option, "--data-dir", str(tmp_path))
    assert (made.returncode, made.stdout) == (1, "")
    assert said in made.stderr
    assert "Traceback" not in made.stderr


def test_webhooks_from_their_making_to_their_end(tmp_path: Path):
    """The secret is alone on standard output, once; a private address needs the operator's word."""
    where = ("--data-dir", str(tmp_path))
    with EmbeddedRedis.start(tmp_path):
        for tenant in ("acme", "other"):
            create_key(tmp_path, tenant)
        make = ("webhooks", "create", "--tenant", "acme", "--url", "http://127.0.0.1:9/in", *where)
        refused = run_sparke(*make)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("sparke: give a URL that begins with https:// and has a host")
        made = run_sparke(*make, SPARKE_WEBHOOKS_ALLOW_PRIVATE="true")
        assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=\n", made.stdout), made.stderr
        [line] = run_sparke("webhooks", "list", *where).stdout.splitlines()
        webhook_id, *shown = line.split("\t")
        assert (shown[0], *shown[2:]) == ("acme", "active", "http://127.0.0.1:9/in")
        assert run_sparke("webhooks", "list", "--tenant", "other", *where).stdout == ""
        wrong = run_sparke("webhooks", "delete", webhook_id, "--tenant", "other", *where)
        assert (wrong.returncode, wrong.stderr) == (1, f"sparke: there is no webhook '{webhook_id}'\n")
        assert run_sparke("webhooks", "enable", webhook_id, "--tenant", "acme", *where).returncode == 0
        rotated = run_sparke(
            "webhooks", "rotate", webhook_id, "--tenant", "acme", "--grace-s", "60", *where
        ).stdout
        assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=\n", rotated)
        assert rotated != made.stdout
        assert run_sparke("webhooks", "delete", webhook_id, "--tenant", "acme", *where).returncode == 0
        assert run_sparke("webhooks", "list", *where).stdout == ""


def test_a_tenant_that_nobody_knows_is_said(tmp_path: Path):
    """A misspelt one has nothing to list, and a webhook of it would never be told anything."""
    where = ("--tenant", "acmee", "--data-dir", str(tmp_path))
    with EmbeddedRedis.start(tmp_path):
        create_key(tmp_path, "acme")
        for command in (
            ("webhooks", "create", "--url", "https://93.184.216.34/in"),
            ("webhooks", "list"),
            ("keys", "list"),
            ("memories", "list"),
        ):
            asked = run_sparke(*command, *where)
            assert (asked.returncode, asked.stdout) == (1, ""), command
            assert asked.stderr == "sparke: there is no tenant 'acmee'; its first key makes one\n", command
        assert run_sparke("webhooks", "list", "--data-dir", str(tmp_path)).stdout == ""
        known = [
            run_sparke("memories", "list", "--tenant", tenant, *where[2:]) for tenant in ("acme", "default")
        ]
        assert [each.returncode for each in known] == [0, 0]


@pytest.mark.parametrize("tenant", ["", "../x"])
def test_a_tenant_of_the_wrong_form_is_refused(tmp_path: Path, tenant: str):
    """One line on standard error, nothing on standard output, and nothing is started."""
    made = run_sparke("keys", "create", "--tenant", tenant, "--data-dir", str(tmp_path))
    assert (made.returncode, made.stdout) == (1, "")
    assert re.fullmatch(r"sparke: a tenant id has the form .*\n", made.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (("worker",), {}, "no Redis: set SPARKE_REDIS_URL"),
        (("api",), {}, "no Redis: set SPARKE_REDIS_URL"),
        (("api",), {"SPARKE_PORT": "eighty"}, "SPARKE_PORT"),
        (("serve",), {"SPARKE_REDIS_URL": "http://x"}, "SPARKE_REDIS_URL"),
    ],
)
def test_what_is_wrong_is_said_in_one_place(
    tmp_path: Path, arguments: tuple[str, ...], variables: dict[str, str], said: str
):
    """A wrong or missing setting is a message that names it, exit code 1, and no traceback."""
    ended = run_sparke(*arguments, "--data-dir", str(tmp_path), **variables)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_no_command_but_worker_loads_torch():
    """The API and the keys start in a moment: torch is not loaded, not even indirectly."""
    program = (
        "import sys, app.cli, app.serve, app.http.process.main\n"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'faiss', 'sparke_engine')"
        " if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_command_ends_at_sigterm_while_it_loads():
    """It has a handler before torch is there: the kernel keeps signals without one from a container's first process."""
    command = [sys.executable, "-P", "-m", "app.cli", "worker", "--redis-url", "redis://127.0.0.1:1/0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not _catches(process.pid, signal.SIGTERM):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM


def _catches(pid: int, number: signal.Signals) -> bool:
    (mask,) = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_the_version_is_told():
    """That of the package, as the API tells it."""
    told = run_sparke("--version")
    assert (told.returncode, told.stdout, told.stderr) == (0, f"sparke {version('sparke')}\n", "")


def test_help_names_every_command():
    """The commands that the design names, and no work done to say so."""
    said = run_sparke("--help").stdout
    assert all(
        command in said
        for command in ("serve", "api", "worker", "calibrate", "keys", "memories", "tenants", "webhooks")
    )
    assert all(
        command in run_sparke("keys", "--help").stdout for command in ("create", "list", "rotate", "revoke")
    )


def test_what_the_command_line_does_is_in_the_audit_log(tmp_path: Path):
    """Each act with its end, by `cli`, a refused one among them, the newest first; looking is no act; no key is in it."""
    where = ("--data-dir", str(tmp_path))
    with EmbeddedRedis.start(tmp_path):
        key = create_key(tmp_path, "acme")
        key_id = key.split("-")[2]
        run_sparke("keys", "list", *where)
        run_sparke("keys", "revoke", key_id, *where)
        run_sparke("keys", "revoke", "00000000", *where)
        run_sparke("tenants", "quotas", "acme", "--images-per-day", "7", *where)
        run_sparke("tenants", "delete", "acme", "--yes", *where)
        listed = run_sparke("audit", *where)
        others = run_sparke("audit", "--tenant", "other", *where)
        unclear = run_sparke("audit", "--after", "yesterday", *where)
        older = run_sparke("audit", "--after", listed.stdout.splitlines()[0].split("\t")[0], *where)
    assert listed.returncode == 0, listed.stderr
    rows = [line.split("\t") for line in listed.stdout.splitlines()]
    assert [(row[2], row[3], row[4]) for row in rows if row[3] != "begun"] == [
        ("tenant.delete", "done", "cli"),
        ("tenant.quotas", "done", "cli"),
        ("key.revoke", "refused", "cli"),
        ("key.revoke", "done", "cli"),
        ("key.create", "done", "cli"),
    ]
    assert len(rows) == 10
    assert "images_per_day=7" in rows[2][-1]
    assert f"new_key={key_id}" in rows[-2][-1]
    assert key.split("-", 3)[3].strip() not in listed.stdout
    assert others.stdout == ""
    assert older.stdout.splitlines() == listed.stdout.splitlines()[1:]
    assert (unclear.returncode, unclear.stdout, unclear.stderr.count("\n")) == (1, "", 1)
    assert unclear.stderr.startswith("sparke: --after takes the id of a record")


def _all_commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _all_commands(inner, f"{path} {name}")


def _helps(path: str, command: Any) -> Iterator[tuple[str, str | None]]:
    yield path, command.help
    for parameter in command.params:
        if not parameter.hidden:
            yield f"{path} {parameter.name}", parameter.help


def test_help_is_there_and_shown_whole():
    """Each command, argument and option has words, and none in brackets that the terminal would take for a style and drop."""
    helps = [
        told for path, command in _all_commands(get_command(cli), "sparke") for told in _helps(path, command)
    ]
    assert len(helps) > 100
    silent = [name for name, words in helps if not words]
    cut = [name for name, words in helps if words and Text.from_markup(words).plain != words]
    assert (silent, cut) == ([], [])
