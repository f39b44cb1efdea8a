"""Every alert has a page, and what the pages tell to do can be done."""

import re
import shlex

import pytest
import typer
import yaml
from typer.core import TyperGroup

from app.cli import cli

SECTIONS = ["What it means", "How to see it", "Likely causes", "What to do", "When it clears"]
PROGRAMS = {"sparke", "curl", "redis-cli", "docker", "nvidia-smi", "df", "free", "promtool"}
ROUTES = {"/livez", "/readyz", "/metrics", "/v1/jobs"}


@pytest.fixture(scope="module")
def alerts(root):
    """The alerts, by name."""
    groups = yaml.safe_load((root / "deploy/prometheus/rules.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


@pytest.fixture(scope="module")
def pages(root):
    """The pages, by name, without the index."""
    found = {path.stem: path.read_text() for path in sorted((root / "docs/runbooks").glob("*.md"))}
    return {name: text for name, text in found.items() if name != "README"}


def _commands(text):
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def _parse(words):
    """Parses a command of ours as it would be run, and runs nothing. Raises LookupError or a usage error of typer's."""
    command, rest = typer.main.get_command(cli), words[1:]
    while isinstance(command, TyperGroup):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(command.name, rest)


def test_every_alert_has_a_page_and_every_page_an_alert(alerts, pages):
    """Nothing is missing, nothing is left over."""
    assert set(pages) == set(alerts)


def test_pages_have_the_same_sections_and_say_how_urgent_it_is(alerts, pages):
    """Who has read one finds their way in all."""
    for name, text in pages.items():
        assert text.startswith(f"# {name}\n\n{alerts[name]['labels']['severity'].capitalize()}. "), name
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS, name
        causes = text.partition("## Likely causes\n")[2].partition("\n## ")[0]
        assert len(re.findall(r"^\d\. ", causes, re.MULTILINE)) >= 2, name


def test_the_index_has_every_page(alerts, root):
    """With the severity that its rule has."""
    text = (root / "docs/runbooks/README.md").read_text()
    rows = dict(re.findall(r"^\| \[(\w+)\]\(\1\.md\) \| (page|ticket) \|", text, re.MULTILINE))
    assert rows == {name: rule["labels"]["severity"] for name, rule in alerts.items()}


def test_commands_exist(pages):
    """Ours parse with their options; the others are programs that are named in one place, and routes are ours."""
    num_ours = 0
    for name, text in pages.items():
        for line in _commands(text):
            words = shlex.split(line)
            assert words[0] in PROGRAMS, (name, line)
            if words[0] == "curl":
                assert re.sub(r"^https?://\w+(:\d+)?|\?.*$", "", words[-1]) in ROUTES, (name, line)
            if words[0] == "sparke":
                _parse(words)
                num_ours += 1
        for mentioned in re.findall(r"`sparke ([a-z]+(?: [a-z]+)?)`", text):
            _resolve(mentioned.split())
    assert num_ours >= 20


def test_the_index_says_where_commands_run(root):
    """Each service of the compose file that is named there is one, and what is run in it is a command of this release."""
    text = (root / "docs/runbooks/README.md").read_text()
    services = yaml.safe_load((root / "docker-compose.yml").read_text())["services"]
    run = re.findall(r"`docker compose (?:exec|run --rm) (\S+) ([^`]*)`", text)
    assert {name for name, _ in run} == {"api", "worker", "redis", "prometheus"}
    assert {name for name, _ in run} <= set(services)
    assert {"worker", "worker-gpu"} <= set(services)
    assert "`worker-gpu`" in text
    ours = [words.removeprefix("sparke ") for name, words in run if name in {"api", "worker"}]
    for words in ours:
        _resolve([word for word in words.split() if word != "…"])


def _resolve(words):
    """That a command of ours is there; its arguments are not."""
    command = typer.main.get_command(cli)
    for word in words:
        command = command.commands[word]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("sparke doctr", "doctr"),
        ("sparke tenants usage", "Missing parameter"),
        ("sparke doctor --jsn", "No such option"),
    ],
)
def test_a_command_that_does_not_exist_is_found(line, fault):
    """A name, a missing argument and an option."""
    with pytest.raises(Exception, match=fault):
        _parse(line.split())


def test_pages_can_be_shown_by_prometheus(pages, root):
    """The compose file's Prometheus shows them as templates of its consoles, so nothing in them may look like one."""
    compose = yaml.safe_load((root / "docker-compose.yml").read_text())["services"]["prometheus"]
    assert "--web.console.templates=/etc/sparke/runbooks" in compose["command"]
    assert "./docs/runbooks:/etc/sparke/runbooks:ro" in compose["volumes"]
    assert [name for name, text in pages.items() if "{{" in text] == []
