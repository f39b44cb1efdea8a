"""docs/kubernetes.md: its folders, jobs and objects are there, and its commands are commands."""

import re
import shlex

import pytest
import typer.core
import typer.main

from app.cli import cli
from tests.deploy.manifests import OVERLAYS, render


@pytest.fixture(scope="module")
def lines(root):
    """The page's commands, joined where they go over several lines."""
    text = (root / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    joined = "".join(blocks).replace("\\\n", " ")
    inline = re.findall(r"`(kubectl [^`]+)`", text)
    return [line.strip() for line in [*joined.splitlines(), *inline] if line.strip()]


@pytest.fixture(scope="module")
def overlays(tree):
    """The objects of both overlays and their jobs, by the folder that is applied."""
    return {
        f"deploy/kubernetes/{kind}/{name}": render(tree / kind / name)
        for name in OVERLAYS
        for kind in ("overlays", "jobs")
    }


def _selected(line):
    """The label and its values, of either form of a selector; none where there is no selector."""
    if found := re.search(r"--selector '(\S+) in \(([^)]+)\)'", line):
        return [(found[1], found[2].split(","))]
    found = re.search(r"--selector (\S+)=(\S+)", line)
    return [(found[1], [found[2]])] if found else []


def test_what_is_applied_is_there(lines, overlays):
    """Each folder renders, and a selector takes something in it: exactly the job that is named, or a component."""
    applied = [line for line in lines if " --kustomize " in line]
    assert len(applied) >= 8
    for line in applied:
        folder = re.search(r"--kustomize (\S+)", line)[1].rstrip("`")
        if folder.startswith("deploy/"):
            objects = overlays[folder].objects
            for key, values in _selected(line):
                for value in values:
                    taken = [one for one in objects if one["metadata"].get("labels", {}).get(key) == value]
                    assert taken, line
                    if key == "job":
                        assert [(one["kind"], one["metadata"]["name"]) for one in taken] == [("Job", value)]
                    if value == "settings":
                        generated = [one for one in objects if one["kind"] in {"ConfigMap", "Secret"}]
                        assert taken == generated


def test_data_are_migrated_when_nobody_works_with_them_any_more(lines):
    """Pods that are told to stop go on for minutes: the page waits for the last of them, and then begins."""
    begins = (
        "scale deployment --all --replicas=0",
        "wait --for=delete pod",
        "--selector job=migrate",
        "scale deployment/api",
    )
    steps = [next(number for number, line in enumerate(lines) if begin in line) for begin in begins]
    assert steps == sorted(steps)
    assert _selected(lines[steps[1]]) == [("app.kubernetes.io/component", ["api", "worker"])]


def test_an_upgrade_waits_for_every_group_of_workers(lines, overlays):
    """The API, which may ask workers for what older ones do not know, comes after the last of them."""
    (waits,) = [line for line in lines if "rollout status" in line and "--selector" in line]
    ((key, values),) = _selected(waits)
    deployments = [
        one
        for one in overlays["deploy/kubernetes/overlays/gpu-production"].objects
        if one["kind"] == "Deployment"
    ]
    taken = {one["metadata"]["name"] for one in deployments if one["metadata"]["labels"].get(key) in values}
    assert taken == {one["metadata"]["name"] for one in deployments} - {"api"}
    assert len(taken) > 1


def test_objects_that_are_named_exist(lines, overlays):
    """`deployment/api`, `job/doctor` and so on are objects of some overlay."""
    kinds = {"deployment": "Deployment", "statefulset": "StatefulSet", "job": "Job", "service": "Service"}
    known = {
        (one["kind"], one["metadata"]["name"]) for manifests in overlays.values() for one in manifests.objects
    }
    named = [
        found
        for line in lines
        for found in re.findall(r"\b(deployment|statefulset|job|service)/([\w-]+)", line)
    ]
    assert len(named) >= 12
    for kind, name in named:
        assert (kinds[kind], name) in known, (kind, name)


def test_commands_of_sparke_parse(lines):
    """What is run in a pod is a command of this release."""
    ran = [line.partition(" -- sparke ")[2] for line in lines if " -- sparke " in line]
    assert len(ran) >= 3
    for line in ran:
        command, name, words = typer.main.get_command(cli), "sparke", shlex.split(line)
        while isinstance(command, typer.core.TyperGroup):
            name, *words = words
            command = command.commands[name]
        command.make_context(name, words)


def test_images_are_built_by_the_names_that_the_demo_runs(lines, overlays):
    """The tags of the page are the overlay's."""
    built = {found for line in lines for found in re.findall(r"docker build .*--tag (\S+)", line)}
    demo = overlays["deploy/kubernetes/overlays/cpu-demo"]
    assert built == {pod.container["image"] for pod in demo.pods_of("api", "worker")}
